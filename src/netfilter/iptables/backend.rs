//! The backend: what it does for an attachment.

#[cfg(test)]
mod kernel_tests;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;

use crate::cni::invocation::Attachment;
use crate::log;
use crate::net::link;
use crate::net::netlink::Netlink;
use crate::netfilter::backend::Backend;
use crate::netfilter::iptables::addition::{PrivateChain, Taken};
use crate::netfilter::iptables::native::port_reservations::Reservations;
use crate::netfilter::iptables::native::{addition, members, port_reservations, private_chain};
use crate::netfilter::iptables::owned::{self, Kind};
use crate::netfilter::iptables::rule::{Rule, Script, Table, TableName};
use crate::netfilter::iptables::tool::{FAMILIES, Family, Refusal, Tool, Unserved, Variant};
use crate::netfilter::iptables::{firewall, masquerade, port_maps};
use crate::netfilter::known::Known;
use crate::netfilter::memo;
use crate::netfilter::model::{Firewall, Masquerade, Owner, PortMaps, Purpose};
use crate::netfilter::nf_tables::{query, ruleset};
use crate::patience::patiently;
use crate::shell::shell;

/// How long to wait for whoever else changes the tables, in seconds.
const LOCK_WAIT: u32 = 10;

/// How often a change that others got in the way of is planned anew.
const TRIES: u32 = 10;

/// After each of these tries, times its number.
const PAUSE: Duration = Duration::from_millis(5);

/// How long another program may take between making a chain and its first rule. Nothing says
/// for sure: the reference runs a process for each, which takes 3 to 30 ms, longer among many.
const FILLING: Duration = Duration::from_millis(100);

/// Which of the kernel's two packet filters have, or may have, what is looked for.
#[derive(Debug, Clone, Copy)]
struct Kinds {
    nft: bool,
    legacy: bool,
}

/// The tools that a search path has.
#[derive(Debug, Clone)]
pub struct Iptables {
    path: OsString,
    lock_wait: u32,
    /// The table that they are to work on.
    table: TableName,
    /// Whether [`native`](crate::netfilter::iptables::native) may do the tools' work.
    is_native: bool,
}

/// The environment variable that makes the tools do all work on rules of iptables if it is `off`.
pub const NATIVE: &str = "CNIBOX_IPTABLES_NATIVE";

impl Iptables {
    /// Those of this process's `PATH`; without the native path where [`NATIVE`] says so.
    #[expect(
        clippy::disallowed_methods,
        reason = "tools are looked up where a shell would look, and operators switch what they do"
    )]
    pub fn from_environment() -> Self {
        Self {
            is_native: std::env::var_os(NATIVE).is_none_or(|value| value != "off"),
            ..Self::new(std::env::var_os("PATH").unwrap_or_default())
        }
    }

    /// Those of `path`, directories separated by colons.
    pub fn new(path: OsString) -> Self {
        Self {
            path,
            lock_wait: LOCK_WAIT,
            table: TableName::default(),
            is_native: true,
        }
    }

    /// Whether there are tools, and a kernel that they can work with. One is started only
    /// where nothing else tells: for legacy tables that nobody has used yet.
    pub fn is_usable(&self) -> bool {
        let tool = self.tool(Family::V4, Variant::Unknown);
        tool.is_some_and(|tool| tool.has_kernel())
    }

    /// For STATUS: whether rules for this purpose could be added to the tables of `family`.
    ///
    /// # Errors
    /// When the tools are missing, or cannot read a table that ADD has to read.
    pub fn check_serves(&self, purpose: Purpose, family: Family) -> Result<()> {
        let (tools, first) = match purpose {
            // Its rules are added without a look at others.
            Purpose::Masquerade => (self.clone(), None),
            Purpose::PortMaps => (self.clone(), Some(port_maps::DNAT)),
            Purpose::Firewall => (self.filter(), Some(firewall::FORWARD)),
        };
        let tool = tools.usual_tool(family)?;
        ensure!(
            tool.has_kernel(),
            "this kernel has no table {} for {}",
            tool.table.as_str(),
            family.command()
        );
        // The first container on a host finds no chain that all share: then the table is read.
        // One that nobody has used yet has nothing that could not be.
        let Some(first) = first.filter(|_| tool.variant == Variant::Nft) else {
            return Ok(());
        };
        let chains = query::chains(family.nft(), tool.table.as_str())?;
        if chains.is_empty() || chains.iter().any(|chain| chain == first) {
            return Ok(());
        }
        // Others may be changing it just now.
        patiently(|| read(&tool)).map(drop)
    }

    /// The tool of this family and variant, if `PATH` has it.
    pub fn tool(&self, family: Family, variant: Variant) -> Option<Tool> {
        let mut tool = Tool::find(&self.path, family, variant, self.lock_wait)?;
        tool.table = self.table;
        tool.is_native = self.is_native;
        Some(tool)
    }

    /// The same tools, for table `filter`.
    pub fn filter(&self) -> Self {
        Self {
            table: TableName::Filter,
            ..self.clone()
        }
    }

    /// The tools for adding and checking: those that everybody uses on this host.
    pub fn usual_tool(&self, family: Family) -> Result<Tool> {
        self.tool(family, Variant::Unknown)
            .ok_or_else(|| self.missing(family, ""))
    }

    /// The tools for removing what has to do with `chains`, or with any container's where
    /// these cannot be named: those of both variants, as the plain names may have led to
    /// the other one when the rules were made (docs/requirements.md#r-60). Only variants that
    /// have something: the kernel says which, and mostly nothing has to be run.
    ///
    /// # Errors
    /// When the kernel has one of `chains`, and there is no tool to remove it. What a
    /// table of the old kind has in it only the tools know: without them there is a
    /// warning, as such a table may well be somebody else's; but where any container's
    /// rules are looked for, not to have looked is an error.
    pub fn tools(&self, family: Family, chains: &[String]) -> Result<Vec<Tool>> {
        let what = match chains.first() {
            Some(chain) => format!("remove {chain} from"),
            None => "look for rules of the dead in".to_owned(),
        };
        let found = Kinds {
            nft: family.has_nft_chain(chains),
            legacy: family.has_legacy_table(self.table),
        };
        self.tools_for(family, found, &what, !chains.is_empty())
    }

    /// The tools for what was `found`, to do `what` with it. Whether there is anything in a
    /// table of the old kind is not known: that there is no tool for it is told, and an
    /// error unless that is `forgiven`.
    fn tools_for(
        &self,
        family: Family,
        found: Kinds,
        what: &str,
        is_forgiven: bool,
    ) -> Result<Vec<Tool>> {
        let Kinds {
            nft: has_nft,
            legacy: has_legacy,
        } = found;
        let is_worth_it = |variant| match variant {
            Variant::Nft => has_nft,
            Variant::Legacy => has_legacy,
            Variant::Unknown => has_nft || has_legacy,
        };
        let mut tools: Vec<Tool> = Vec::new();
        for variant in [Variant::Unknown, Variant::Nft, Variant::Legacy] {
            let tool = Some(variant)
                .filter(|variant| is_worth_it(*variant))
                .and_then(|variant| self.tool(family, variant))
                .filter(|tool| is_worth_it(tool.variant));
            if let Some(tool) = tool
                && tools.iter().all(|other| other.variant != tool.variant)
            {
                tools.push(tool);
            }
        }
        let lacks = |variant| {
            let serves = |tool: &Tool| [variant, Variant::Unknown].contains(&tool.variant);
            !tools.iter().any(serves)
        };
        let table = format!("table {} of {}", self.table.as_str(), family.command());
        if has_nft && lacks(Variant::Nft) {
            let missing = self.missing(family, "-nft");
            return Err(missing.context(format!("{what} {table}")));
        }
        if has_legacy && lacks(Variant::Legacy) {
            let missing = self.missing(family, "-legacy");
            let what = format!("{what} legacy {table}");
            if !is_forgiven {
                return Err(missing.context(what));
            }
            log::warn(&format!("{what}: {missing}"));
        }
        Ok(tools)
    }

    /// The tools for looking at mappings of anybody's, where there may be some: mostly
    /// nothing has to be run.
    fn mapping_tools(&self, family: Family) -> Result<Vec<Tool>> {
        if family.has_nft_rules(port_maps::DNAT) || family.has_legacy_table(TableName::Nat) {
            self.tools(family, &[port_maps::DNAT.to_owned()])
        } else {
            Ok(Vec::new())
        }
    }

    /// Says that a tool is not there. `infix` names a variant, if it has to be that one.
    fn missing(&self, family: Family, infix: &str) -> anyhow::Error {
        let name = format!("{}{infix}", family.command());
        let path = self.path.to_string_lossy();
        let text = format!("find {name}-restore and {name}-save in PATH {path}");
        let command = family.command();
        Unserved::Missing { command, text }.into()
    }

    /// Removes what `plan` finds, in both variants.
    fn remove(
        &self,
        family: Family,
        chains: &[String],
        plan: impl Fn(&Table) -> Script,
    ) -> Result<()> {
        let mut result = Ok(());
        for tool in self.tools(family, chains)? {
            keep_first(&mut result, settle(&tool, |table| Ok(plan(table))));
        }
        result
    }

    /// The containers whose rules of this kind [`owned::collect`] would remove.
    fn stale(&self, kind: &Kind, network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
        let mut containers = BTreeSet::new();
        for family in FAMILIES {
            for tool in self.tools(family, &[])? {
                let table = tool.save()?;
                let table = table.map_err(|refusal| refusal.during("read", &tool))?;
                containers.extend(owned::stale(kind, network, valid, &table));
            }
        }
        Ok(containers.into_iter().collect())
    }

    /// Removes what [`Iptables::stale`] tells of.
    fn collect(&self, kind: &Kind, network: &str, valid: &[Attachment]) -> Result<()> {
        at_once(&FAMILIES, |family| {
            let mut result = Ok(());
            for tool in self.tools(*family, &[])? {
                keep_first(&mut result, collect_with(&tool, kind, network, valid));
            }
            result
        })
    }

    /// Removes the rules that let `addresses` through, and those of bridges that are gone.
    fn remove_rules_of(&self, addresses: &[IpAddr]) -> Result<()> {
        let netlink = Netlink::open()?;
        // In doubt it is still there.
        let is_gone = |name: &str| matches!(link::by_name(&netlink, name), Ok(None));
        let mut result = Ok(());
        for family in FAMILIES {
            let of_family = |address: &&IpAddr| Family::of(**address) == family;
            let addresses: Vec<IpAddr> = addresses.iter().filter(of_family).copied().collect();
            // In doubt, the tools will tell.
            let rules: Vec<Rule> = addresses.iter().copied().flat_map(firewall::own).collect();
            let own = firewall::members(family, rules.iter().collect());
            let may_be_left = || {
                !self.is_native
                    || members::remove(&own, firewall::FORWARD, &addresses).unwrap_or(true)
            };
            let has_rules = !addresses.is_empty() && may_be_left();
            match self.tools_of(family, has_rules) {
                Err(error) => keep_first(&mut result, Err(error)),
                Ok(tools) => {
                    for tool in tools {
                        let find = |table: &Table| Ok(firewall::remove(&addresses, table, is_gone));
                        keep_first(&mut result, settle(&tool, find));
                    }
                }
            }
        }
        result
    }

    /// The tools for removing what the nft variant still has of a container's rules, if it does,
    /// and those of bridges that are gone. The latter do no harm: they stay where there is no
    /// tool.
    fn tools_of(&self, family: Family, has_rules: bool) -> Result<Vec<Tool>> {
        let name = self.table.as_str();
        let legacy = family.has_legacy_table(self.table);
        if has_rules {
            let found = Kinds { nft: true, legacy };
            return self.tools_for(family, found, "remove the container's rules from", true);
        }
        let nft = query::has_chain(family.nft(), name, firewall::STAGE_1).unwrap_or(true);
        let what = "look for rules of bridges that are gone in";
        let tools = self.tools_for(family, Kinds { nft, legacy }, what, true);
        Ok(tools.unwrap_or_else(|error| {
            log::warn(&format!("{error:#}"));
            Vec::new()
        }))
    }

    /// The tools for looking at what lets containers through, where something does.
    pub fn tools_for_passing(&self, family: Family) -> Result<Vec<Tool>> {
        let name = self.table.as_str();
        let found = Kinds {
            nft: query::has_chain(family.nft(), name, firewall::FORWARD)?,
            legacy: family.has_legacy_table(self.table),
        };
        self.tools_for(family, found, "look for rules of containers in", true)
    }

    /// Removes the chain without a tool, in the usual case. Whatever it comes to: what is
    /// there after it is for the tools.
    fn remove_natively(&self, chain: &PrivateChain<'_>, known: &Known) {
        if !self.is_native {
            return;
        }
        if let Err(error) = private_chain::remove(chain, |net| known.is_own(net)) {
            log::warn(&format!("remove chain {}: {error:#}", chain.name));
        }
    }

    /// Who has which ports in the nft variant's table; `None` where that is not understood.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn taken(&self, family: ruleset::Family) -> Result<Option<Vec<Taken>>> {
        let table = if self.is_native {
            addition::entries(family, port_maps::DNAT)?.map(|rules| Table {
                rules,
                ..Table::default()
            })
        } else {
            let is_it = |own: &Family| own.nft() == family;
            let tool = FAMILIES
                .into_iter()
                .find(is_it)
                .and_then(|family| self.tool(family, Variant::Nft));
            match tool {
                Some(tool) => tool.save()?.ok(),
                None => None,
            }
        };
        Ok(table.map(|table| port_maps::taken(&table)))
    }

    /// The rules of the mappings that `owner` wants, for each family that it has an address of.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::failure::Kind::Invalid) for a condition that cannot be passed on to iptables.
    pub fn port_map_rules(
        owner: &Owner,
        wanted: &PortMaps,
    ) -> Result<Vec<(Family, port_maps::Rules)>> {
        wanted
            .container
            .iter()
            .map(|container| {
                let rules = port_maps::Rules::new(owner, *container, wanted)?;
                Ok((family_of(container), rules))
            })
            .collect()
    }
}

impl Backend for Iptables {
    fn ensure_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<()> {
        let families = by_family(&wanted.addresses);
        let made = at_once(&families, |(family, addresses)| {
            let rules = masquerade::Rules::new(owner, *family, addresses);
            let tool = self.usual_tool(*family)?;
            // Refused for the second attachment of a container to the same network.
            if tool.add(&rules.addition())?.is_ok() {
                return Ok(());
            }
            let _alone = tool.exclude_others()?;
            settle(&tool, |table| Ok(rules.repair(table)))
        });
        if made.is_err() && families.len() > 1 {
            undo(self.remove_masquerade(owner, &Known::only(&wanted.addresses)));
        }
        made
    }

    fn remove_masquerade(&self, owner: &Owner, known: &Known) -> Result<()> {
        let mut families = by_family(&known.own);
        if families.is_empty() {
            families = FAMILIES.map(|family| (family, Vec::new())).into();
        }
        at_once(&families, |(family, addresses)| {
            let rules = masquerade::Rules::new(owner, *family, addresses);
            self.remove_natively(&rules.private_chain(*family), known);
            self.remove(*family, &rules.chains(), |table| {
                rules.remove_found(known, table)
            })
        })
    }

    fn missing_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for (family, addresses) in by_family(&wanted.addresses) {
            let rules = masquerade::Rules::new(owner, family, &addresses);
            let tool = self.usual_tool(family)?;
            let [chain] = rules.chains();
            let table = listed(&tool, &chain)?;
            if let Some(table) = table.as_ref() {
                missing.extend(absent(&tool, table, rules.all())?);
            }
        }
        Ok(missing)
    }

    fn stale_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
        self.stale(&masquerade::KIND, network, valid)
    }

    fn collect_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<()> {
        self.collect(&masquerade::KIND, network, valid)
    }

    fn masquerades(&self, owner: &Owner, address: IpNet) -> Result<bool> {
        let family = family_of(&address);
        let rules = masquerade::Rules::new(owner, family, &[address]);
        for tool in self.tools(family, &rules.chains())? {
            if rules.has_jump(&read(&tool)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn ensure_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<()> {
        let rules = Self::port_map_rules(owner, wanted)?;
        let conflicts = std::sync::Mutex::new(BTreeSet::new());
        let made = at_once(&rules, |(family, rules)| {
            let tool = self.usual_tool(*family)?;
            let mut found = Vec::new();
            let mut taken = None;
            let add = || {
                if rules.has_conditions() {
                    Ok(tool.restore(&rules.add())?.map(Some))
                } else {
                    tool.add(&rules.addition())
                }
            };
            if tool.may_have(port_maps::DNAT)
                && let Ok(listed) = add()?
            {
                if let Some(listed) = listed {
                    found = rules.conflicts(&listed);
                    taken = Some(port_maps::taken(&listed));
                }
                // The others' mappings are in chains of their own. When these cannot be
                // seen, a warning too many is better than none.
                if !found.is_empty()
                    && let Ok(Ok(table)) = tool.save()
                {
                    found = rules.conflicts(&table);
                }
            } else {
                // Refused for the first mapping on a host, after somebody flushed a
                // shared chain, or when the container has mappings already.
                let _alone = tool.exclude_others()?;
                let settled = try_to_settle(&tool, |table| {
                    found = rules.conflicts(table);
                    taken = Some(port_maps::taken(table));
                    rules.repair(table)
                })?;
                settled.map_err(|refusal| {
                    let error = refusal.during("change", &tool);
                    rules.blame_conditions(error)
                })?;
            }
            if let Some(taken) = taken.filter(|_| tool.variant == Variant::Nft) {
                Reservations::new(family.nft(), &rules.wanted_ports()).settle(&taken);
            }
            // A poisoned lock means a panic, which has ended the process.
            if let Ok(mut conflicts) = conflicts.lock() {
                conflicts.extend(found);
            }
            Ok(())
        });
        for conflict in conflicts.into_inner().unwrap_or_default() {
            log::warn(&conflict);
        }
        if made.is_err() && rules.len() > 1 {
            undo(self.remove_port_maps(owner, &Known::only(&wanted.container)));
        }
        made
    }

    fn remove_port_maps(&self, owner: &Owner, known: &Known) -> Result<()> {
        let chains = port_maps::chains(owner);
        let [chain, _] = &chains;
        let comment = port_maps::comment_of(owner);
        at_once(&FAMILIES, |family| {
            self.remove_natively(&port_maps::private_chain(*family, chain, &comment), known);
            self.remove(*family, &chains, |table| {
                port_maps::remove(owner, known, table)
            })
        })?;
        port_reservations::release(owner, &|family| self.taken(family)).context("give up the ports")
    }

    fn missing_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for (family, rules) in Self::port_map_rules(owner, wanted)? {
            let tool = self.usual_tool(family)?;
            let [chain, _] = port_maps::chains(owner);
            let table = listed(&tool, &chain)?;
            let Some(table) = table.as_ref() else {
                continue;
            };
            missing.extend(absent(&tool, table, rules.own())?);
            // One mark serves all: that of whoever came last.
            if !rules.is_marked(table) {
                missing.extend(absent(&tool, table, rules.marks())?);
            }
        }
        Ok(missing)
    }

    fn stale_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
        let mut owners = self.stale(&port_maps::KIND, network, valid)?;
        for container in port_reservations::stale(network, valid)? {
            if !owners.contains(&container) {
                owners.push(format!(
                    "{container}, remembered although its rules are gone"
                ));
            }
        }
        Ok(owners)
    }

    fn collect_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<()> {
        let mut result = self.collect(&port_maps::KIND, network, valid);
        keep_first(
            &mut result,
            port_reservations::collect(network, valid, &|family| self.taken(family)),
        );
        result
    }

    fn yield_ports(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>> {
        // Conditions are in the words of the other backend.
        let wanted = PortMaps {
            conditions_v4: Vec::new(),
            conditions_v6: Vec::new(),
            ..wanted.clone()
        };
        let mut sentences = BTreeSet::new();
        for container in &wanted.container {
            let tools = self.mapping_tools(family_of(container))?;
            if tools.is_empty() {
                continue;
            }
            let rules = port_maps::Rules::new(owner, *container, &wanted)?;
            for tool in tools {
                settle(&tool, |table| {
                    let (script, disputed) = rules.displace(table);
                    sentences.extend(disputed);
                    Ok(script)
                })?;
            }
        }
        Ok(sentences.into_iter().collect())
    }

    fn mapped_ipv4(&self) -> Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for tool in self.mapping_tools(Family::V4)? {
            addresses.extend(port_maps::mapped_to(&read(&tool)?));
        }
        Ok(addresses)
    }

    fn ensure_firewall(&self, _owner: &Owner, wanted: &Firewall) -> Result<()> {
        let tools = self.filter();
        let families = firewall_families(&wanted.addresses);
        let made = at_once(&families, |family| {
            let rules = firewall::Rules::new(*family, wanted);
            let tool = tools.usual_tool(*family)?;
            let (own, shared) = rules.members(*family);
            if tool.variant == Variant::Nft
                && tool.is_native
                && members::add(&own, shared).unwrap_or_default()
            {
                return Ok(());
            }
            // Refused for the first container on a host or a bridge.
            if let Ok(listed) = tool.restore(&rules.add())?
                && rules.is_settled(&listed)
            {
                return Ok(());
            }
            let _alone = tool.exclude_others()?;
            settle(&tool, |table| Ok(rules.repair(table)))
        });
        if made.is_err() && families.len() > 1 {
            undo(tools.remove_rules_of(&wanted.addresses));
        }
        made
    }

    fn remove_firewall(&self, _owner: &Owner, known: &[IpAddr]) -> Result<()> {
        self.filter().remove_rules_of(known)
    }

    fn missing_firewall(&self, _owner: &Owner, wanted: &Firewall) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for family in firewall_families(&wanted.addresses) {
            let rules = firewall::Rules::new(family, wanted);
            let tool = self.filter().usual_tool(family)?;
            let table = listed(&tool, firewall::FORWARD)?;
            if let Some(table) = table.as_ref() {
                missing.extend(absent(&tool, table, rules.missing(table))?);
            }
        }
        Ok(missing)
    }

    fn stale_firewall(&self, _network: &str, _valid: &[Attachment]) -> Result<Vec<String>> {
        let netlink = Netlink::open()?;
        let mut bridges = BTreeSet::new();
        for family in FAMILIES {
            for tool in self.filter().tools_of(family, false)? {
                let table = read(&tool)?;
                bridges.extend(firewall::bridges(&table).map(str::to_owned));
            }
        }
        let mut gone = Vec::new();
        for bridge in bridges {
            if link::by_name(&netlink, &bridge)?.is_none() {
                gone.push(format!("bridge {bridge}, which is gone"));
            }
        }
        Ok(gone)
    }

    fn collect_firewall(&self, _network: &str, _valid: &[Attachment]) -> Result<()> {
        self.filter().remove_rules_of(&[])
    }
}

fn family_of(address: &IpNet) -> Family {
    Family::of(address.addr())
}

/// The families of `addresses`, each once.
fn firewall_families(addresses: &[IpAddr]) -> Vec<Family> {
    let is_used = |family: &Family| addresses.iter().any(|ip| Family::of(*ip) == *family);
    FAMILIES.into_iter().filter(is_used).collect()
}

/// The families that have addresses, and these.
fn by_family(addresses: &[IpNet]) -> Vec<(Family, Vec<IpNet>)> {
    FAMILIES
        .map(|family| {
            let of_family = |address: &&IpNet| family_of(address) == family;
            (
                family,
                addresses.iter().filter(of_family).copied().collect(),
            )
        })
        .into_iter()
        .filter(|(_, addresses): &(_, Vec<_>)| !addresses.is_empty())
        .collect()
}

/// Does `work` for all items at the same time; the error is the first item's.
fn at_once<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let [others @ .., last] = items else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = others
            .iter()
            .map(|item| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, || work(item));
                // No thread to be had: one after the other, then.
                thread.map_err(|_none| item)
            })
            .collect();
        let last = work(last);
        let mut result = Ok(());
        for thread in threads {
            let done = match thread {
                // Unreachable: a panic ends the process in its hook.
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_panic| Err(anyhow::anyhow!("a thread died"))),
                Err(item) => work(item),
            };
            keep_first(&mut result, done);
        }
        keep_first(&mut result, last);
        result
    })
}

/// The first error counts; further ones are told to the operator.
fn keep_first(result: &mut Result<()>, next: Result<()>) {
    match (&result, next) {
        (Ok(()), next) => *result = next,
        (Err(_), Err(error)) => log::warn(&format!("iptables: {error:#}")),
        (Err(_), Ok(())) => {}
    }
}

/// One family was refused: the other must not keep its rules. The caller has the error
/// already.
fn undo(removed: Result<()>) {
    if let Err(error) = removed {
        log::warn(&format!("undo the other family's rules: {error:#}"));
    }
}

/// As [`Iptables::collect`], with `tool`. A chain without rules may be one that another
/// program is making: it goes if it has none a moment later.
fn collect_with(tool: &Tool, kind: &Kind, network: &str, valid: &[Attachment]) -> Result<()> {
    let mut flushed = BTreeSet::new();
    settle(tool, |table| {
        flushed = owned::flushed(kind, table).map(str::to_owned).collect();
        Ok(owned::collect(kind, network, valid, table))
    })?;
    if flushed.is_empty() {
        return Ok(());
    }
    std::thread::sleep(FILLING);
    settle(tool, |table| {
        Ok(owned::remove_flushed(kind, table, &flushed))
    })
}

/// As [`try_to_settle`]; a refusal is an error.
fn settle(tool: &Tool, plan: impl FnMut(&Table) -> Result<Script>) -> Result<()> {
    try_to_settle(tool, plan)?.map_err(|refusal| refusal.during("change", tool))
}

/// Reads the table, plans and changes it; again when the change is refused, because
/// another process was faster. Refused twice for the same reason, with nothing changed in
/// between, nobody was: trying again would not help.
fn try_to_settle(
    tool: &Tool,
    mut plan: impl FnMut(&Table) -> Result<Script>,
) -> Result<std::result::Result<(), Refusal>> {
    let mut unreadable = None;
    let mut refused = None;
    for attempt in 1..=TRIES {
        match tool.save()? {
            Err(refusal) => unreadable = Some(refusal),
            Ok(table) => {
                let script = plan(&table)?;
                if script.is_empty() {
                    return Ok(Ok(()));
                }
                let Err(refusal) = tool.restore(&script)? else {
                    return Ok(Ok(()));
                };
                unreadable = None;
                let now = Some((table, refusal));
                if now == refused {
                    break;
                }
                refused = now;
            }
        }
        std::thread::sleep(PAUSE * attempt);
    }
    match (unreadable, refused) {
        (None, Some((_, refusal))) => Ok(Err(refusal)),
        (Some(refusal), _) => Err(refusal.during("read", tool)),
        (None, None) => Ok(Ok(())),
    }
}

/// The table that `tool` works on.
fn read(tool: &Tool) -> Result<Table> {
    tool.save()?.map_err(|refusal| refusal.during("read", tool))
}

/// As [`read`], for CHECK and other questions: the tool is run once while a [`Memo`](crate::netfilter::memo::Memo)
/// keeps the answer. Rules of other programs in the table may keep the tool from reading it,
/// which breaks no container: `None` where the kernel has `chain` all the same. A table
/// without it counts as empty.
fn listed(tool: &Tool, chain: &str) -> Result<Rc<Option<Table>>> {
    let name = format!("{} {}", tool.program().display(), tool.table.as_str());
    let table = memo::listing(&name, || match tool.save()? {
        Ok(table) => Ok(Some(table)),
        Err(refusal) if refusal.is_unreadable() => Ok(None),
        Err(refusal) => Err(refusal.during("read", tool)),
    })?;
    if table.is_some() {
        return Ok(table);
    }
    let name = tool.table.as_str();
    if !query::has_chain(tool.family.nft(), name, chain)? {
        return Ok(Rc::new(Some(Table::default())));
    }
    log::warn(&format!(
        "table {name} holds rules that {} cannot read: there is a chain {chain}, its rules were not compared",
        tool.family.command()
    ));
    Ok(table)
}

/// Those of `rules` that `table` does not have, each as the command that would add it. A
/// rule that is not there word by word, because the configuration has words of its own in
/// it, is asked for: the tool knows what is the same. Only where there is something that
/// it could be: after a flush there are no processes to wait for.
fn absent<'a>(
    tool: &Tool,
    table: &Table,
    rules: impl Iterator<Item = &'a Rule>,
) -> Result<Vec<String>> {
    let wanted: Vec<&Rule> = rules.collect();
    let mut absent = Vec::new();
    for rule in wanted.iter().filter(|rule| !table.rules.contains(rule)) {
        let mut others = table.rules.iter().filter(|found| !wanted.contains(found));
        let may_be_there = others.any(|found| found.chain == rule.chain);
        let mut script = Script::of(tool.table);
        script.assert(rule);
        if !may_be_there || tool.restore(&script)?.is_err() {
            let (command, table) = (tool.family.command(), tool.table.as_str());
            absent.push(
                shell![command, "-t", table, "-A"]
                    .arg(&rule.chain)
                    .args(&rule.args)
                    .into(),
            );
        }
    }
    Ok(absent)
}
