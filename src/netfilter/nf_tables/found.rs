//! The rules that the kernel has.

use std::rc::Rc;

use anyhow::{Context, Result};
use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute, RuleMessage};

use crate::netfilter::memo;
use crate::netfilter::nf_tables::anonymous_set::resolve;
use crate::netfilter::nf_tables::decode::{
    decode, decode_known, describe, destination_port, packets, refuses_all, xt_comment,
};
use crate::netfilter::nf_tables::identity;
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nf_tables::message::{EXPRESSIONS, is_absent, text, with_family};
use crate::netfilter::nf_tables::rule::{Handle, Statement};
use crate::netfilter::nf_tables::ruleset::{Family, Table};
use crate::netfilter::nfnetlink::socket::{Socket, attributes};

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
