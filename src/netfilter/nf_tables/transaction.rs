//! Changes to the ruleset that happen all or not at all, and what there is to begin with.

use std::fmt;
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_NONREC};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, InetHookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::errno::Errno;

use crate::net::netlink::errno;
use crate::netfilter::memo;
use crate::netfilter::nf_tables::among::resolve;
use crate::netfilter::nf_tables::decode::{
    decode, decode_known, describe, destination_port, packets, refuses_all, xt_comment,
};
use crate::netfilter::nf_tables::encode::encode;
use crate::netfilter::nf_tables::identity;
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nf_tables::ruleset::{Chain, Family, Place, Rule, Statement, Table};
use crate::netfilter::nf_tables::set::{Key, Set};
use crate::netfilter::nfnetlink::socket::{BatchRefused, Socket, attributes};
use crate::shell::ShellCommand;

/// How often a transaction is tried that others got in the way of, and how long to wait
/// before the second time; twice as long before each further one (half a second in all).
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(1);

/// The number in a transaction of the first set that is part of a rule. Sets with a name are
/// all number 1, which nobody asks for.
pub const FIRST_SET: u32 = 2;

/// `NFTA_RULE_EXPRESSIONS`.
pub const EXPRESSIONS: u16 = 4;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds the table unless it exists.
    AddTable(Table),
    /// Adds the chain unless it exists.
    AddChain(Chain),
    /// Removes every rule of the chain.
    FlushChain(Chain),
    /// As [`Change::FlushChain`], of a chain whose rules have been listed: refused if
    /// anything has changed since the ruleset had this number.
    FlushListed(Chain, u32),
    /// Removes the chain with its rules.
    DeleteChain(Chain),
    /// Removes the chain; refused if it has rules.
    DeleteEmptyChain(Chain),
    /// Adds a rule behind all others.
    Append(Chain, Rule),
    /// Adds a rule in front of all others.
    Insert(Chain, Rule),
    DeleteRule(Table, Handle),
    /// Adds the set unless it exists.
    AddSet(Set),
    /// Removes the set; refused if it has elements.
    DeleteEmptySet(Set),
    /// Adds elements; refused if there is one of them.
    CreateElements(Set, Vec<(Key, String)>),
    /// Removes elements; refused if one is not there.
    DeleteElements(Set, Vec<Key>),
}

/// How the kernel names a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    pub chain: String,
    pub number: u64,
}

/// As a line for `nft -f`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => {
                write!(f, "add table {table}")?;
                let comment = table.comment;
                comment.map_or(Ok(()), |text| write!(f, " {{ comment \"{text}\"; }}"))
            }
            Self::AddChain(chain) => {
                write!(f, "add chain {chain}")?;
                if let Some(hook) = &chain.hook {
                    write!(f, " {{ {hook} }}")?;
                }
                let comment = chain.comment;
                comment.map_or(Ok(()), |text| write!(f, " {{ comment \"{text}\"; }}"))
            }
            Self::FlushChain(chain) | Self::FlushListed(chain, _) => {
                write!(f, "flush chain {chain}")
            }
            Self::DeleteChain(chain) | Self::DeleteEmptyChain(chain) => {
                write!(f, "delete chain {chain}")
            }
            Self::Append(chain, rule) => write!(f, "add rule {chain} {rule}"),
            Self::Insert(chain, rule) => write!(f, "insert rule {chain} {rule}"),
            Self::DeleteRule(table, Handle { chain, number }) => {
                write!(f, "delete rule {table} {chain} handle {number}")
            }
            Self::AddSet(set) => {
                let Set { keys, comment, .. } = set;
                write!(f, "add set {set} {{ type {keys}; comment \"{comment}\"; }}")
            }
            Self::DeleteEmptySet(set) => write!(f, "delete set {set}"),
            Self::CreateElements(set, elements) => {
                let elements = elements.iter();
                let elements = elements.map(|(key, text)| format!("{key} comment \"{text}\""));
                let elements = elements.collect::<Vec<_>>().join(", ");
                write!(f, "create element {set} {{ {elements} }}")
            }
            Self::DeleteElements(set, keys) => {
                let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
                write!(f, "delete element {set} {{ {} }}", keys.join(", "))
            }
        }
    }
}

impl Change {
    /// The command that makes it.
    pub fn command(&self) -> String {
        ShellCommand::nft(&self.to_string()).into()
    }

    /// All that the kernel takes for it: sets that are part of a rule come in front of it,
    /// under the numbers from `next_set` on, which is moved on.
    fn messages(&self, next_set: &mut u32) -> Vec<(NetfilterMessage, u16)> {
        let first_set = *next_set;
        let mut messages = Vec::new();
        if let Self::Append(chain, rule) | Self::Insert(chain, rule) = self {
            for statement in &rule.statements {
                if let Statement::Among(among) = statement {
                    let set = among.set_messages(&chain.table, *next_set);
                    *next_set += u32::from(!set.is_empty());
                    messages.extend(set);
                }
            }
        }
        messages.push(self.message(first_set));
        messages
    }

    /// As the kernel takes it, with the flags of the request, behind the sets that are part
    /// of its rule, numbered from `first_set` on.
    pub fn message(&self, first_set: u32) -> (NetfilterMessage, u16) {
        let (table, message, flags) = match self {
            Self::AddTable(table) => {
                let mut attributes = vec![
                    TableAttribute::Name(table.name.to_owned()),
                    TableAttribute::Flags(TableFlags::empty()),
                ];
                if table.comment.is_some() {
                    let data = identity::user_data(table.comment, None);
                    attributes.push(TableAttribute::UserData(data));
                }
                let message = NfTablesMessage::NewTable(TableMessage { attributes });
                (table, message, NLM_F_CREATE)
            }
            Self::AddChain(chain) => {
                let message = NfTablesMessage::NewChain(new_chain(chain));
                (&chain.table, message, NLM_F_CREATE)
            }
            Self::FlushChain(chain) | Self::FlushListed(chain, _) => {
                let attributes = rule_place(&chain.table, &chain.name);
                let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
                (&chain.table, message, 0)
            }
            Self::DeleteChain(chain) => (&chain.table, deleted_chain(chain), 0),
            Self::DeleteEmptyChain(chain) => (&chain.table, deleted_chain(chain), NLM_F_NONREC),
            Self::Append(chain, rule) => {
                let message = NfTablesMessage::NewRule(new_rule(chain, rule, first_set));
                (&chain.table, message, NLM_F_CREATE | NLM_F_APPEND)
            }
            Self::Insert(chain, rule) => {
                let message = NfTablesMessage::NewRule(new_rule(chain, rule, first_set));
                (&chain.table, message, NLM_F_CREATE)
            }
            Self::DeleteRule(table, handle) => {
                let mut attributes = rule_place(table, &handle.chain);
                attributes.push(RuleAttribute::Handle(handle.number));
                let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
                (table, message, 0)
            }
            Self::AddSet(set) => (&set.table, set.message(), NLM_F_CREATE),
            Self::DeleteEmptySet(set) => (&set.table, set.removal(), NLM_F_NONREC),
            Self::CreateElements(set, elements) => {
                let (message, flags) = set.creation(elements);
                (&set.table, message, flags)
            }
            Self::DeleteElements(set, keys) => (&set.table, set.deletion(keys), 0),
        };
        (with_family(table.family, message), flags)
    }
}

fn new_chain(chain: &Chain) -> ChainMessage {
    let mut attributes = chain_place(&chain.table, &chain.name);
    if let Some(hook) = &chain.hook {
        let place = match hook.place {
            Place::Prerouting => InetHookNumber::PreRouting,
            Place::Forward => InetHookNumber::Forward,
            Place::Output => InetHookNumber::LocalOut,
            Place::Postrouting => InetHookNumber::PostRouting,
        };
        attributes.push(ChainAttribute::Type(hook.kind.to_owned()));
        attributes.push(ChainAttribute::Hook(vec![
            HookAttribute::Number(place.into()),
            HookAttribute::Priority(hook.priority.cast_unsigned()),
        ]));
    }
    if chain.comment.is_some() {
        let data = identity::user_data(chain.comment, None);
        attributes.push(ChainAttribute::UserData(data));
    }
    ChainMessage { attributes }
}

fn deleted_chain(chain: &Chain) -> NfTablesMessage {
    let attributes = chain_place(&chain.table, &chain.name);
    NfTablesMessage::DeleteChain(ChainMessage { attributes })
}

fn new_rule(chain: &Chain, rule: &Rule, first_set: u32) -> RuleMessage {
    let mut attributes = rule_place(&chain.table, &chain.name);
    let encoded = encode(chain.table.family, &rule.statements, first_set);
    attributes.push(expressions(encoded));
    let data = identity::user_data(rule.comment.as_deref(), rule.tag.as_ref());
    if !data.is_empty() {
        attributes.push(RuleAttribute::UserData(data));
    }
    RuleMessage { attributes }
}

fn chain_place(table: &Table, chain: &str) -> Vec<ChainAttribute> {
    vec![
        ChainAttribute::Table(table.name.to_owned()),
        ChainAttribute::Name(chain.to_owned()),
    ]
}

/// The names that lead to a rule.
pub fn rule_place(table: &Table, chain: &str) -> Vec<RuleAttribute> {
    vec![
        RuleAttribute::Table(table.name.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
    ]
}

/// What a rule says, `encoded`.
pub fn expressions(encoded: Vec<u8>) -> RuleAttribute {
    RuleAttribute::Other(DefaultNla::new(EXPRESSIONS | NLA_F_NESTED, encoded))
}

/// A message about objects of `family`.
pub fn with_family(family: Family, message: NfTablesMessage) -> NetfilterMessage {
    let family = match family {
        Family::Ip => NetfilterProtoFamily::IPv4,
        Family::Ip6 => NetfilterProtoFamily::IPv6,
        Family::Inet => NetfilterProtoFamily::Inet,
        Family::Bridge => NetfilterProtoFamily::Bridge,
        Family::Netdev => NetfilterProtoFamily::NetDev,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

/// A rule that the kernel has.
#[derive(Debug, Clone)]
pub struct Found {
    pub handle: Handle,
    pub comment: Option<String>,
    pub tag: Option<Tag>,
    pub family: Family,
    expressions: Vec<u8>,
}

impl Found {
    /// The value of `NFTA_RULE_EXPRESSIONS`.
    pub fn expressions(&self) -> &[u8] {
        &self.expressions
    }

    /// What the rule says; `None` where part of it is not understood.
    pub fn statements(&self) -> Option<Vec<Statement>> {
        decode(self.family, &self.expressions)
    }

    /// As [`Self::statements`], with what is in the sets that are part of the rule, which is
    /// in `table`.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn whole_statements(
        &self,
        socket: &Socket,
        table: &Table,
    ) -> Result<Option<Vec<Statement>>> {
        let Some(mut statements) = self.statements() else {
            return Ok(None);
        };
        resolve(socket, table, &mut statements)?;
        Ok(Some(statements))
    }

    /// The destination port that it asks for, if any.
    pub fn port(&self) -> Option<u16> {
        destination_port(&self.expressions)
    }

    /// Whether no packet gets past it.
    pub fn refuses_all(&self) -> bool {
        refuses_all(&self.expressions)
    }

    /// How many packets it has counted, if it does.
    pub fn packets(&self) -> Option<u64> {
        packets(&self.expressions)
    }

    /// That part of it that is understood.
    pub fn known_statements(&self) -> Vec<Statement> {
        decode_known(self.family, &self.expressions)
    }

    /// The rule in words, as far as there are any.
    pub fn words(&self) -> String {
        describe(self.family, &self.expressions)
    }

    /// Its comment, whether nft or iptables made it.
    pub fn any_comment(&self) -> Option<String> {
        self.comment
            .clone()
            .or_else(|| xt_comment(&self.expressions))
    }

    /// The rule whose attributes are `answer`.
    pub fn parse(family: Family, answer: &[u8]) -> Self {
        const CHAIN: u16 = 2;
        const HANDLE: u16 = 3;
        const USER_DATA: u16 = 7;
        let mut found = Self {
            handle: Handle {
                chain: String::new(),
                number: 0,
            },
            comment: None,
            tag: None,
            family,
            expressions: Vec::new(),
        };
        for (kind, value) in attributes(answer) {
            match kind {
                CHAIN => found.handle.chain = text(value),
                HANDLE => {
                    found.handle.number = value.try_into().map_or(0, u64::from_be_bytes);
                }
                EXPRESSIONS => found.expressions = value.to_vec(),
                USER_DATA => (found.comment, found.tag) = identity::parse(value),
                _ => {}
            }
        }
        found
    }
}

/// A string attribute.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// Every rule of `table`, or of one chain of it, in order. A table, a chain or a kernel
/// without them has none.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn rules(socket: &Socket, table: &Table, chain: Option<&str>) -> Result<Vec<Found>> {
    let mut attributes = vec![RuleAttribute::Table(table.name.to_owned())];
    attributes.extend(chain.map(|chain| RuleAttribute::Chain(chain.to_owned())));
    let message = NfTablesMessage::GetRule(RuleMessage { attributes });
    let answers = match socket.dump(&with_family(table.family, message)) {
        Err(error) if is_absent(&error) => Vec::new(),
        answers => answers.with_context(|| format!("list the rules of table {table}"))?,
    };
    let found = answers
        .iter()
        .map(|answer| Found::parse(table.family, answer));
    Ok(found.collect())
}

/// As [`rules`], for questions only: the kernel is asked once while a
/// [`Memo`](crate::netfilter::memo::Memo) keeps the answer.
///
/// # Errors
/// As [`rules`].
pub fn listed(socket: &Socket, table: &Table, chain: Option<&str>) -> Result<Rc<Vec<Found>>> {
    let name = format!("{table} {}", chain.unwrap_or_default());
    memo::listing(&name, || rules(socket, table, chain))
}

/// Whether the error means that there is no such object, or that this kernel has no
/// `nf_tables` (EINVAL), or not for the family, or that its name is longer than any can
/// be (ERANGE).
pub fn is_absent(error: &anyhow::Error) -> bool {
    use Errno::{EAFNOSUPPORT, EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT, ERANGE};
    const ABSENT: [Errno; 6] = [
        ENOENT,
        EINVAL,
        EOPNOTSUPP,
        EAFNOSUPPORT,
        EPROTONOSUPPORT,
        ERANGE,
    ];
    errno(error).is_some_and(|errno| ABSENT.contains(&errno))
}

/// Makes the changes in one transaction; `false` when one was refused, and none made.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn try_apply(socket: &Socket, changes: &[Change]) -> Result<bool> {
    Ok(send(socket, changes)?.is_ok())
}

/// Sends the changes. What was refused is a change's number, not a message's.
fn send(socket: &Socket, changes: &[Change]) -> Result<std::result::Result<(), BatchRefused>> {
    let generation = changes.iter().find_map(|change| match change {
        Change::FlushListed(_, generation) => Some(*generation),
        _ => None,
    });
    let mut next_set = FIRST_SET;
    let (mut messages, mut about) = (Vec::new(), Vec::new());
    for (index, change) in changes.iter().enumerate() {
        messages.extend(change.messages(&mut next_set));
        about.resize(messages.len(), index);
    }
    let done = socket.batch(NetfilterSubsystem::NfTables, generation, messages)?;
    Ok(
        done.map_err(|BatchRefused { message, cause }| BatchRefused {
            message: message.and_then(|message| about.get(message).copied()),
            cause,
        }),
    )
}

/// Asks `plan` what to change and changes it, in one transaction. When others change
/// the same things at the same time, it starts over: `plan` looks again.
///
/// # Errors
/// Those of `plan`, and the change that the kernel refuses.
pub fn apply(socket: &Socket, plan: impl Fn() -> Result<Vec<Change>>) -> Result<()> {
    let mut pause = PAUSE;
    for left in (0..TRIES).rev() {
        let changes = plan()?;
        if changes.is_empty() {
            return Ok(());
        }
        let Err(refused) = send(socket, &changes)? else {
            return Ok(());
        };
        let BatchRefused { message, cause } = refused;
        let change = message.and_then(|index| changes.get(index));
        // ENOENT: what was there when the plan was made is gone; EEXIST: what was not is.
        let raced = matches!(
            cause.errno,
            Errno::EBUSY
                | Errno::EINTR
                | Errno::EAGAIN
                | Errno::ERESTART
                | Errno::ENOENT
                | Errno::EEXIST
        );
        if !raced || left == 0 {
            let change = change.map_or_else(|| "change the ruleset".to_owned(), Change::to_string);
            return Err(cause).context(format!("nftables: {change}"));
        }
        sleep(pause);
        pause *= 2;
    }
    Ok(())
}
