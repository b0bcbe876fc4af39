//! Changes to the ruleset: in words of nft(8), and as the kernel takes them.

use std::fmt;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_NONREC};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, InetHookNumber, NfTablesMessage,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};

use crate::netfilter::nf_tables::encode::encode;
use crate::netfilter::nf_tables::identity;
use crate::netfilter::nf_tables::message::{expressions, rule_place, with_family};
use crate::netfilter::nf_tables::rule::{Handle, Rule, Statement};
use crate::netfilter::nf_tables::ruleset::{Chain, Place, Table};
use crate::netfilter::nf_tables::set::{Elements, Key, PER_MESSAGE, Set};
use crate::shell::ShellCommand;

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
    /// Those that create elements that must not be there yet.
    pub fn create_elements(set: &Set, elements: Elements) -> Vec<Self> {
        let elements: Vec<_> = elements.into_iter().collect();
        let pieces = elements.chunks(PER_MESSAGE);
        pieces
            .map(|piece| Self::CreateElements(*set, piece.to_vec()))
            .collect()
    }

    /// Those that delete elements that are there.
    pub fn delete_elements(set: &Set, keys: &[Key]) -> Vec<Self> {
        let pieces = keys.chunks(PER_MESSAGE);
        pieces
            .map(|piece| Self::DeleteElements(*set, piece.to_vec()))
            .collect()
    }

    /// Those that make the set itself.
    pub fn make_set(set: &Set) -> [Self; 2] {
        [Self::AddTable(set.table), Self::AddSet(*set)]
    }

    /// The command that makes it.
    pub fn command(&self) -> String {
        ShellCommand::nft(&self.to_string()).into()
    }

    /// All that the kernel takes for it: sets that are part of a rule come in front of it,
    /// under the numbers from `next_set` on, which is moved on.
    pub fn messages(&self, next_set: &mut u32) -> Vec<(NetfilterMessage, u16)> {
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
