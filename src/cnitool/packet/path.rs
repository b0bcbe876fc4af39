//! The way of one packet, out of what the kernel told of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::destination::Flow;
use crate::netfilter::Family;
use crate::netfilter::Names;
use crate::netfilter::listing::Claim;
use crate::netfilter::trace::{Cause, Event, Hook, Met, Verdict};

/// All stations of a packet, in order.
#[derive(Debug, Default)]
pub struct Path {
    /// The hooks it came through.
    pub stages: Vec<Stage>,
}

/// A hook, and the rules that the packet met there.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// `prerouting`, `input`, `forward`, `output`, `postrouting`.
    pub hook: &'static str,
    /// Whether that is a bridge's, where frames pass, or else the host's, where packets do.
    pub bridge: bool,
    /// The link where the packet came in.
    pub input: Option<String>,
    /// The link where it goes out.
    pub output: Option<String>,
    /// The packet as it came.
    pub packet: String,
    /// The packet as it went, where that is another: its addresses were translated.
    pub translated: Option<String>,
    /// The rules it met, in order.
    pub steps: Vec<Step>,
    /// Whether it passed all chains.
    pub passed: bool,
    #[serde(skip)]
    flow: Option<Flow>,
    #[serde(skip)]
    kind: Option<Hook>,
}

/// A rule that the packet met, or the end of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The table's.
    pub family: String,
    /// Where.
    pub table: String,
    /// Where in it.
    pub chain: String,
    /// Of a rule; otherwise it is the end of the chain, and of a base chain its policy.
    pub handle: Option<u64>,
    /// Whether this is the policy of a base chain.
    pub is_policy: bool,
    /// The rule in the words of nft, with dots for what is not understood.
    pub rule: Option<String>,
    /// What the rule's author wrote about it.
    pub comment: Option<String>,
    /// Whose it is.
    pub owner: Option<Owner>,
    /// `drop`, `accept`, `continue`, `jump CHAIN`, `goto CHAIN`, `return`, …
    pub verdict: String,
    /// The command that shows the chain.
    pub command: String,
}

/// Whose a rule is, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// Its network.
    pub network: Option<String>,
    /// Its container.
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
    /// Its interface in the container.
    pub ifname: Option<String>,
}

impl From<&Claim> for Owner {
    fn from(claim: &Claim) -> Self {
        Self {
            network: claim.network.clone(),
            container_id: claim.container_id.clone(),
            ifname: claim.ifname.clone(),
        }
    }
}

/// Where a packet ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// No rule of this host ever saw it.
    Unseen,
    /// Here.
    Dropped(Box<Step>),
    /// With a program of this host.
    Here,
    /// It went out by this link.
    Out(String),
    /// After this hook, and no rule did it.
    Lost(&'static str),
}

impl Path {
    /// Joins `events`, in which only one packet is. `rule` looks at the rule of one, `link`
    /// tells the name of a link.
    pub fn of(
        events: &[Event],
        rule: impl Fn(&Event, u64) -> Option<Met>,
        link: impl Fn(u32) -> Option<String>,
    ) -> Self {
        let mut path = Self::default();
        // The chains that only one owner's rules lead to are theirs as well.
        let mut owners: BTreeMap<String, Owner> = BTreeMap::new();
        for event in events {
            path.enter(event, &link);
            let Some(stage) = path.stages.last_mut() else {
                continue;
            };
            if event.is_ours() {
                stage.passed |= event.hook.is_some_and(|hook| hook.as_str() == event.chain);
                continue;
            }
            // The mark that the kernel keeps behind the last rule of a chain is no rule.
            if event.cause == Cause::Rule(0) {
                continue;
            }
            let met = match event.cause {
                Cause::Rule(handle) => Some(rule(event, handle).unwrap_or_default()),
                _ => None,
            };
            let owner = met.as_ref().and_then(|met| met.owner.as_ref());
            let owner = owner
                .map(Owner::from)
                .or_else(|| met.as_ref().and_then(|_| owners.get(&event.chain).cloned()));
            if let (Some(owner), Verdict::Jump(chain) | Verdict::Goto(chain)) =
                (&owner, &event.verdict)
                && is_private(chain)
            {
                owners.insert(chain.clone(), owner.clone());
            }
            let chain = Names {
                family: event.family,
                table: &event.table,
                chain: &event.chain,
            };
            stage.steps.push(Step {
                family: event.family.to_string(),
                table: event.table.clone(),
                chain: event.chain.clone(),
                handle: match event.cause {
                    Cause::Rule(handle) => Some(handle),
                    _ => None,
                },
                is_policy: event.cause == Cause::Policy,
                rule: met.as_ref().map(|met| met.words.clone()),
                comment: met.and_then(|met| met.comment),
                owner,
                verdict: event.verdict.to_string(),
                command: chain.list().into(),
            });
        }
        path
    }

    /// Notes the packet, where `event` tells how it is: in a new stage, or in the last.
    fn enter(&mut self, event: &Event, link: &impl Fn(u32) -> Option<String>) {
        let (Some(packet), Some(hook)) = (&event.packet, event.hook) else {
            return;
        };
        let flow = Flow::of(packet);
        if let Some(last) = self.stages.last_mut() {
            if let Some(flow) = flow
                && last.flow.is_some_and(|before| before != flow)
            {
                last.flow = Some(flow);
                last.translated = Some(flow.to_string());
            }
            if !last.passed
                && last.kind == Some(hook)
                && last.bridge == (event.family == Family::Bridge)
            {
                return;
            }
        }
        self.stages.push(Stage {
            hook: hook.as_str(),
            bridge: event.family == Family::Bridge,
            input: link(packet.input),
            output: link(packet.output),
            packet: flow.map_or_else(|| "?".to_owned(), |flow| flow.to_string()),
            translated: None,
            steps: Vec::new(),
            passed: false,
            flow,
            kind: Some(hook),
        });
    }

    /// Where the packet ended. What leaves by a link of which `is_bridge` is true has yet to
    /// leave by a port of it.
    pub fn end(&self, is_bridge: impl Fn(&str) -> bool) -> End {
        let Some(last) = self.stages.last() else {
            return End::Unseen;
        };
        if let Some(step) = last.steps.last()
            && step.verdict == "drop"
        {
            return End::Dropped(step.clone().into());
        }
        // With br_netfilter, the host's hooks come within the bridge's.
        let port = || {
            let mut stages = self.stages.iter().rev();
            let left = stages.find(|stage| {
                stage.bridge && stage.passed && stage.kind == Some(Hook::Postrouting)
            })?;
            left.output.clone()
        };
        match (last.kind, &last.output) {
            (Some(Hook::Input), _) if last.passed && !last.bridge => End::Here,
            (Some(Hook::Postrouting), Some(link)) if last.passed => {
                if last.bridge || !is_bridge(link) {
                    return End::Out(link.clone());
                }
                port().map_or(End::Lost(last.hook), End::Out)
            }
            _ => End::Lost(last.hook),
        }
    }
}

/// Whether a chain is one of those that are made for one attachment.
fn is_private(chain: &str) -> bool {
    ["CNI-", "cni-", "cnibox-"]
        .iter()
        .any(|start| chain.starts_with(start))
        && chain.bytes().any(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::trace::{Packet, TABLE};

    /// An event of a rule in table `t`, or at the end of a hook.
    fn event(hook: Hook, to: Option<[u8; 4]>, verdict: Option<Verdict>) -> Event {
        let mut network = vec![0x45; 20];
        network[9] = 1;
        let packet = to.map(|to| {
            network[16..20].copy_from_slice(&to);
            Packet {
                network,
                input: 1,
                output: 2,
                ..Packet::default()
            }
        });
        Event {
            family: Family::Inet,
            table: if verdict.is_some() { "t" } else { TABLE }.to_owned(),
            chain: hook.as_str().to_owned(),
            cause: verdict.as_ref().map_or(Cause::Policy, |_| Cause::Rule(7)),
            verdict: verdict.unwrap_or(Verdict::Accept),
            hook: packet.as_ref().map(|_| hook),
            packet,
        }
    }

    fn path(events: &mut [Event]) -> Path {
        for event in &mut *events {
            if event.is_ours() {
                assert!(event.hook.is_some());
            }
        }
        Path::of(events, |_, _| None, |index| Some(format!("eth{index}")))
    }

    #[test]
    fn a_translation_shows_in_the_hook_where_it_was() {
        let (before, after) = ([192, 0, 2, 1], [10, 1, 0, 2]);
        let mut events = [
            event(Hook::Prerouting, Some(before), Some(Verdict::Accept)),
            event(Hook::Prerouting, Some(after), None),
            event(Hook::Forward, Some(after), None),
            event(Hook::Postrouting, Some(after), None),
        ];
        let path = path(&mut events);
        let hooks: Vec<_> = path.stages.iter().map(|stage| stage.hook).collect();
        assert_eq!(hooks, ["prerouting", "forward", "postrouting"]);
        let translated: Vec<_> = path.stages.iter().map(|s| s.translated.is_some()).collect();
        assert_eq!(translated, [true, false, false]);
        assert_eq!(path.end(|_| false), End::Out("eth2".into()));
        assert_eq!(path.end(|_| true), End::Lost("postrouting"));
    }

    #[test]
    fn a_packet_ends_where_it_is_dropped_or_was_last_seen() {
        let to = Some([192, 0, 2, 1]);
        let mut events = vec![event(Hook::Prerouting, to, None)];
        assert_eq!(path(&mut events).end(|_| false), End::Lost("prerouting"));
        events.push(event(Hook::Input, to, None));
        assert_eq!(path(&mut events).end(|_| false), End::Here);
        events.pop();
        events.push(event(Hook::Forward, to, Some(Verdict::Drop)));
        let End::Dropped(step) = path(&mut events).end(|_| false) else {
            panic!("not dropped");
        };
        assert_eq!((step.chain.as_str(), step.handle), ("forward", Some(7)));
        assert_eq!(path(&mut []).end(|_| false), End::Unseen);
    }
}
