//! Port mappings of one container in one network, one family (docs/compatibility.md#7.3).

mod conflicts;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use ipnet::IpNet;

use crate::failure::{self, Failure};
use crate::netfilter::iptables::addition::{Addition, PrivateChain, Taken, WantedPorts};
use crate::netfilter::iptables::owned::{
    self, Kind, comment, is_owned, is_private, parse_comment, remove_chain,
};
use crate::netfilter::iptables::rule::{Rule, Script, Table};
use crate::netfilter::iptables::tool::Family;
use crate::netfilter::known::Known;
use crate::netfilter::model::{Mapping, Mark, Owner, PortMaps, Protocol};

/// Private chains hold mappings.
pub const KIND: Kind = Kind {
    comment: "dnat ",
    prefix: "CNI-DN-",
};

/// All mappings: an entry for each container.
pub const DNAT: &str = "CNI-HOSTPORT-DNAT";
/// Marks what is to be masqueraded.
const SETMARK: &str = "CNI-HOSTPORT-SETMARK";
/// Masquerades what is marked.
const MASQ: &str = "CNI-HOSTPORT-MASQ";
/// Private chains of old versions: source NAT.
const OLD_SNAT_PREFIX: &str = "CNI-SN-";

const MARK_COMMENT: &str = "CNI portfwd masquerade mark";
const MASQ_COMMENT: &str = "CNI portfwd requiring masquerade";

/// What the match `multiport` takes.
const PORTS_PER_ENTRY: usize = 15;

/// What must exist.
#[derive(Debug)]
pub struct Rules {
    owner: Owner,
    chain: String,
    comment: String,
    /// Lead from the hooks into shared chains.
    jumps: Vec<Rule>,
    /// The one rule of each shared chain that is about marks.
    marks: Vec<Rule>,
    /// The container's chain.
    mappings: Vec<Rule>,
    /// Lead from the shared chain into the container's.
    entries: Vec<Rule>,
    /// A chain that must be there already.
    external: Option<String>,
    /// The container's, where the mappings lead.
    address: IpAddr,
    /// Of the host, with the address if only that one is mapped.
    ports: BTreeSet<(Protocol, u16, Option<IpAddr>)>,
    /// Whether to say whose they were.
    warns: bool,
    /// The key of the configuration with conditions, if it has any.
    conditions: Option<&'static str>,
}

impl Rules {
    /// For `container`, one of its addresses.
    ///
    /// # Errors
    /// [`failure::Kind::Invalid`] for a word that cannot be passed on to iptables.
    pub fn new(owner: &Owner, container: IpNet, wanted: &PortMaps) -> Result<Self> {
        let id = &owner.attachment.container_id;
        let chain = owned::private_chain(KIND.prefix, &owner.network, id);
        let comment = comment_of(owner);
        let (key, conditions) = match container {
            IpNet::V4(_) => ("conditionsV4", &wanted.conditions_v4),
            IpNet::V6(_) => ("conditionsV6", &wanted.conditions_v6),
        };
        for word in conditions {
            check_word(key, word)?;
        }
        let (mark_chain, external) = match &wanted.mark {
            Mark::Bit(_) => (SETMARK, None),
            Mark::Chain(name) => {
                check_word("externalSetMarkChain", name)?;
                (name.as_str(), Some(name.clone()).filter(|_| wanted.snat))
            }
        };
        let mut jumps = Vec::new();
        let mut marks = Vec::new();
        if wanted.snat
            && let Mark::Bit(bit) = wanted.mark
        {
            marks = mark_rules(bit).into();
            let comment = ["-m", "comment", "--comment", MASQ_COMMENT, "-j", MASQ];
            jumps.push(Rule::new("POSTROUTING", comment));
        }
        for hook in ["PREROUTING", "OUTPUT"] {
            let local = ["-m", "addrtype", "--dst-type", "LOCAL", "-j", DNAT];
            jumps.push(Rule::new(hook, local));
        }
        Ok(Self {
            owner: owner.clone(),
            jumps,
            marks,
            mappings: mapping_rules(&chain, mark_chain, container, wanted),
            entries: entry_rules(&chain, &comment, conditions, wanted),
            external,
            address: container.addr(),
            conditions: Some(key).filter(|_| !conditions.is_empty()),
            ports: wanted
                .mappings
                .iter()
                .filter(|mapping| mapping.is_for(container.addr()))
                .map(|mapping| (mapping.protocol, mapping.host_port, only_host(mapping)))
                .collect(),
            warns: wanted.warn_of_takeovers,
            chain,
            comment,
        })
    }

    /// What nobody else can choose: all rules but the marks.
    pub fn own(&self) -> impl Iterator<Item = &Rule> {
        self.jumps.iter().chain(&self.mappings).chain(&self.entries)
    }

    /// The rules that mark packets for masquerading.
    pub fn marks(&self) -> impl Iterator<Item = &Rule> {
        self.marks.iter()
    }

    /// Whether `table` has rules that do the marking, with any mark.
    pub fn is_marked(&self, table: &Table) -> bool {
        self.marks
            .iter()
            .all(|rule| table.rules.iter().any(|found| has_shape(found, rule)))
    }

    /// Adds what is the container's own, and tells the other entries where somebody may have one
    /// of the ports. Refused when something shared is missing, or the container's chain is there
    /// already.
    pub fn addition(&self) -> Addition<'_> {
        Addition {
            needed: self.jumps.iter().chain(&self.marks).collect(),
            chain: &self.chain,
            appended: self.mappings.iter().collect(),
            ports: Some(self.wanted_ports()),
            inserted: self.entering().collect(),
        }
    }

    /// The ports of these rules.
    pub fn wanted_ports(&self) -> WantedPorts<'_> {
        let ports = self.ports.iter();
        WantedPorts {
            chain: DNAT,
            owner: &self.owner,
            ports: ports
                .map(|(protocol, port, _)| (*protocol, *port))
                .collect(),
        }
    }

    /// As [`Rules::addition`], for the tools.
    pub fn add(&self) -> Script {
        self.addition().script()
    }

    /// Whether there are words of the operator's in the rules, which only the tools read.
    pub fn has_conditions(&self) -> bool {
        self.conditions.is_some()
    }

    /// Adds what is missing in `table`, and replaces what leads to this address. Mappings
    /// to another one stay, behind the new ones: they are those of another attachment of
    /// the container to this network, which has the same chain.
    ///
    /// # Errors
    /// [`failure::Kind::Invalid`] when the chain that is to mark is not there.
    pub fn repair(&self, table: &Table) -> Result<Script> {
        if let Some(chain) = &self.external
            && !table.chains.contains(chain)
        {
            let sentence = format!("externalSetMarkChain: there is no chain {chain} in table nat");
            return Err(Failure::new(failure::Kind::Invalid, sentence).because(
                "create the chain, or leave the key out to have packets marked by CNI's own chain",
            ));
        }
        let mut script = Script::default();
        let shared: BTreeSet<&str> = self.marks.iter().map(|rule| rule.chain.as_str()).collect();
        for chain in shared.into_iter().chain([DNAT]) {
            if !table.chains.contains(chain) {
                script.create_chain(chain);
            }
        }
        for rule in &self.marks {
            // Another mark, of another configuration: two at once would both be set on
            // every packet and masqueraded (docs/compatibility.md#defect-27).
            let is_other = |found: &&Rule| *found != rule && has_shape(found, rule);
            for found in table.rules.iter().filter(is_other) {
                script.delete(found);
            }
            if !table.rules.contains(rule) {
                script.append(rule);
            }
        }
        for rule in &self.jumps {
            if table.rules.contains(rule) {
                continue;
            }
            match rule.jump() {
                // In front of rules that masquerade in their own way.
                Some(MASQ) => script.insert(rule),
                _ => script.append(rule),
            }
        }
        let mut kept = Vec::new();
        if table.chains.contains(&self.chain) {
            let replaced;
            (replaced, kept) = divide(table, &self.chain, |address| address != self.address);
            let (replaced, kept) = (ports(&replaced), ports(&kept));
            for entry in table.jumps(&self.chain) {
                let is_spent = is_spent(entry, &replaced, &kept);
                if is_owned(entry, &self.comment) && (is_spent || self.entries.contains(entry)) {
                    script.delete(entry);
                }
            }
            script.flush_chain(&self.chain);
        } else {
            script.create_chain(&self.chain);
        }
        for rule in self.mappings.iter().chain(kept) {
            script.append(rule);
        }
        for rule in self.entering() {
            script.insert(rule);
        }
        Ok(script)
    }

    /// `error` is that the rules were refused: by the words of the operator, if there are
    /// any.
    pub fn blame_conditions(&self, error: anyhow::Error) -> anyhow::Error {
        match self.conditions {
            Some(key) => error.context(Failure::new(
                failure::Kind::Invalid,
                format!("{key}: iptables refuses rules with these conditions"),
            )),
            None => error,
        }
    }

    /// Rules to be inserted in front of older ones, so that the newest owner of a port has it.
    fn entering(&self) -> impl Iterator<Item = &Rule> {
        self.entries.iter().rev()
    }
}

/// The rules that the container's chain has in `table`: those of mappings that go, and of
/// those that stay because they lead to an address that is `spared`. Rules that mark belong
/// to the mapping behind them.
fn divide<'a>(
    table: &'a Table,
    chain: &str,
    spared: impl Fn(IpAddr) -> bool,
) -> (Vec<&'a Rule>, Vec<&'a Rule>) {
    let (mut gone, mut kept) = (Vec::new(), Vec::new());
    let mut marks = Vec::new();
    for rule in table.rules.iter().filter(|rule| rule.chain == chain) {
        marks.push(rule);
        if rule.value("--to-destination").is_none() {
            continue;
        }
        // What is no address, of another tool or version, cannot be told apart.
        if destination(rule).is_some_and(&spared) {
            kept.append(&mut marks);
        } else {
            gone.append(&mut marks);
        }
    }
    gone.append(&mut marks);
    (gone, kept)
}

/// The address that a mapping leads to.
fn destination(rule: &Rule) -> Option<IpAddr> {
    let target = rule.value("--to-destination")?;
    target.parse().ok().map(|target: SocketAddr| target.ip())
}

/// Protocol and port, as rules have them.
type Ports<'a> = BTreeSet<(Option<&'a str>, Option<&'a str>)>;

/// The ports that `rules` are about.
fn ports<'a>(rules: &[&'a Rule]) -> Ports<'a> {
    let port = |rule: &&'a Rule| (rule.value("-p"), rule.value("--dport"));
    rules.iter().map(port).collect()
}

/// Whether `entry` goes with the rules that are `gone` from the chain behind it: of those
/// that are `kept` it serves none, or others do as it lists a port that none of them has.
fn is_spent(entry: &Rule, gone: &Ports<'_>, kept: &Ports<'_>) -> bool {
    let listed: Ports<'_> = dports(entry)
        .map(|port| (entry.value("-p"), Some(port)))
        .collect();
    let of_gone: Ports<'_> = listed.intersection(gone).copied().collect();
    kept.is_empty() || !of_gone.is_empty() && (listed.is_disjoint(kept) || !of_gone.is_subset(kept))
}

/// The ports that `entry` lists.
fn dports(entry: &Rule) -> impl Iterator<Item = &str> {
    let ports = entry.value("--dports").unwrap_or_default();
    ports.split(',')
}

/// The addresses that the mappings of containers lead to.
pub fn mapped_to(table: &Table) -> impl Iterator<Item = IpAddr> {
    let rules = table.rules.iter().filter(|rule| is_private(&rule.chain));
    rules.filter_map(destination)
}

/// The chains without which there is nothing of the owner: today's, and one that versions
/// before 0.8 made beside it.
pub fn chains(owner: &Owner) -> [String; 2] {
    [KIND.prefix, OLD_SNAT_PREFIX]
        .map(|prefix| owned::private_chain(prefix, &owner.network, &owner.attachment.container_id))
}

/// Who has which ports in `table`.
pub fn taken(table: &Table) -> Vec<Taken> {
    let entries = table.rules.iter().filter(|rule| rule.chain == DNAT);
    let taken = entries.flat_map(|entry| {
        let protocol = entry.value("-p").and_then(Protocol::named);
        let owner = parse_comment(KIND.comment, entry.comment().unwrap_or_default());
        let owner = owner.map(|(network, id)| (network.to_owned(), id.to_owned()));
        dports(entry).filter_map(move |port| Some(((protocol?, port.parse().ok()?), owner.clone())))
    });
    taken.collect()
}

/// The comment of what leads to the owner's chain.
pub fn comment_of(owner: &Owner) -> String {
    comment(KIND.comment, &owner.network, &owner.attachment.container_id)
}

/// The owner's `chain` of the nft variant.
pub fn private_chain<'a>(family: Family, chain: &'a str, comment: &'a str) -> PrivateChain<'a> {
    PrivateChain {
        family: family.nft(),
        name: chain,
        entrance: DNAT,
        comment,
    }
}

/// Removes what `table` has of the owner. Its chain is that of all the container's
/// attachments to the network: the mappings that lead to what is `known` as another's stay.
pub fn remove(owner: &Owner, known: &Known, table: &Table) -> Script {
    let comment = comment_of(owner);
    let mut script = Script::default();
    let [chain, old] = chains(owner);
    let found = table
        .rules
        .iter()
        .filter(|rule| rule.chain == chain)
        .filter_map(destination)
        .any(|address| known.is_own(address.into()));
    let (gone, kept) = divide(table, &chain, |address| known.spares(address.into(), found));
    if kept.is_empty() {
        remove_chain(&mut script, table, &chain, |rule| is_owned(rule, &comment));
        remove_chain(&mut script, table, &old, |_| true);
    } else if !gone.is_empty() {
        let (gone, remaining) = (ports(&gone), ports(&kept));
        for entry in table.jumps(&chain) {
            if is_owned(entry, &comment) && is_spent(entry, &gone, &remaining) {
                script.delete(entry);
            }
        }
        // Two mappings can be marked by rules that are the same: which of them was deleted
        // would be anybody's guess.
        script.flush_chain(&chain);
        for rule in kept {
            script.append(rule);
        }
    }
    script
}

/// Refuses what would end the line, or the text, in which it stands.
fn check_word(key: &str, word: &str) -> Result<()> {
    ensure!(
        !word.is_empty() && !word.chars().any(char::is_control),
        Failure::new(
            failure::Kind::Invalid,
            format!("{key}: {word:?} cannot be an argument of iptables")
        )
    );
    Ok(())
}

fn mark_rules(bit: u8) -> [Rule; 2] {
    let mark = 1_u32.checked_shl(bit.into()).unwrap_or_default();
    let mark = format!("{mark:#x}/{mark:#x}");
    let set = ["-m", "comment", "--comment", MARK_COMMENT, "-j", "MARK"];
    let set = set.into_iter().chain(["--set-xmark", mark.as_str()]);
    let masquerade = ["-m", "mark", "--mark", mark.as_str(), "-j", "MASQUERADE"];
    [Rule::new(SETMARK, set), Rule::new(MASQ, masquerade)]
}

/// Whether the two differ in nothing but hexadecimal numbers.
fn has_shape(found: &Rule, rule: &Rule) -> bool {
    found.chain == rule.chain
        && found.args.len() == rule.args.len()
        && found
            .args
            .iter()
            .zip(&rule.args)
            .all(|(a, b)| a == b || (a.starts_with("0x") && b.starts_with("0x")))
}

/// The host's address, if not all of them are mapped.
fn only_host(mapping: &Mapping) -> Option<IpAddr> {
    mapping.host_ip.filter(|host| !host.is_unspecified())
}

fn mapping_rules(chain: &str, mark: &str, container: IpNet, wanted: &PortMaps) -> Vec<Rule> {
    let mut rules = Vec::new();
    let subnet = container.trunc();
    let localhost = IpNet::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let address = container.addr();
    let family = wanted.mappings.iter().filter(|m| m.is_for(address));
    for mapping in family {
        let host = only_host(mapping);
        let mut rule = |source: Option<IpNet>, target: Vec<Cow<'static, str>>| {
            let mut args = Vec::with_capacity(12);
            for (option, net) in [("-s", source), ("-d", host.map(IpNet::from))] {
                if let Some(net) = net {
                    args.extend([option.into(), net.to_string().into()]);
                }
            }
            let protocol = mapping.protocol.as_str();
            args.extend(["-p", protocol, "-m", protocol, "--dport"].map(Cow::Borrowed));
            args.extend([mapping.host_port.to_string().into(), "-j".into()]);
            args.extend(target);
            let chain = chain.to_owned();
            rules.push(Rule { chain, args });
        };
        let mark = || vec![mark.to_owned().into()];
        if wanted.snat && wanted.masquerade_all {
            rule(None, mark());
        } else if wanted.snat {
            rule(Some(subnet), mark());
            if address.is_ipv4() {
                rule(Some(localhost), mark());
            }
        }
        let to = SocketAddr::new(address, mapping.container_port).to_string();
        let dnat = ["DNAT", "--to-destination"].map(Cow::Borrowed);
        rule(None, dnat.into_iter().chain([to.into()]).collect());
    }
    rules
}

/// Lists ports of the other family too: the reference does, and its CHECK compares.
fn entry_rules(chain: &str, comment: &str, conditions: &[String], wanted: &PortMaps) -> Vec<Rule> {
    let mut rules = Vec::new();
    let protocols: BTreeSet<Protocol> = wanted.mappings.iter().map(|m| m.protocol).collect();
    for protocol in protocols {
        let ports: Vec<String> = wanted
            .mappings
            .iter()
            .filter(|mapping| mapping.protocol == protocol)
            .map(|mapping| mapping.host_port.to_string())
            .collect();
        for group in ports.chunks(PORTS_PER_ENTRY) {
            let ports = group.join(",");
            let mut args = vec!["-p", protocol.as_str(), "-m", "comment", "--comment"];
            args.extend([comment, "-m", "multiport", "--dports", &ports]);
            args.extend(conditions.iter().map(String::as_str));
            args.extend(["-j", chain]);
            rules.push(Rule::new(DNAT, args));
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::iptables::golden;
    use crate::netfilter::iptables::golden::assert_golden;
    use crate::netfilter::test_node;

    fn owner(id: &str) -> Owner {
        test_node::owner("net1", id, "eth0")
    }

    /// A mapping; `host_ip` is empty for every address.
    pub fn mapping(
        protocol: Protocol,
        host_ip: &str,
        host_port: u16,
        container_port: u16,
    ) -> Mapping {
        Mapping {
            protocol,
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
            host_port,
            container_port,
        }
    }

    /// The mappings of a container with both families.
    pub fn wanted(mappings: Vec<Mapping>) -> PortMaps {
        test_node::port_maps(&["10.9.0.2/24", "fd00:9::2/64"], mappings)
    }

    /// What is wanted of the container `id` in one family: 0 is IPv4, 1 IPv6.
    pub fn rules(id: &str, family: usize, wanted: &PortMaps) -> Rules {
        Rules::new(&owner(id), wanted.container[family], wanted).unwrap()
    }

    fn one() -> PortMaps {
        wanted(vec![mapping(Protocol::Tcp, "", 8080, 80)])
    }

    /// The table of a host on which `maps` are the first.
    pub fn after(maps: &PortMaps) -> Table {
        let script = rules("cont1", 0, maps).repair(&Table::default());
        golden::table_after(&script.unwrap())
    }

    #[test]
    fn one_mapping_as_the_reference_makes_it() {
        let maps = rules("cont1", 0, &one());
        assert_golden(&maps.add().text(), "port-maps-add-v4");
        let fresh = maps.repair(&Table::default()).unwrap();
        assert_golden(&fresh.text(), "port-maps-fresh-v4");
        let maps = rules("cont1", 1, &one());
        assert_golden(&maps.add().text(), "port-maps-add-v6");
    }

    #[test]
    fn every_kind_of_mapping() {
        let mut maps = wanted(vec![
            mapping(Protocol::Udp, "0.0.0.0", 53, 5353),
            mapping(Protocol::Tcp, "192.168.1.1", 8080, 80),
            mapping(Protocol::Tcp, "::1", 8081, 81),
            mapping(Protocol::Sctp, "::", 9000, 90),
        ]);
        maps.conditions_v4 = vec!["!".into(), "-d".into(), "192.0.2.0/24".into()];
        maps.conditions_v6 = vec![
            "-m".into(),
            "comment".into(),
            "--comment".into(),
            "a \"b\"".into(),
        ];
        maps.mark = Mark::Bit(31);
        assert_golden(&rules("cont1", 0, &maps).add().text(), "port-maps-all-v4");
        assert_golden(&rules("cont1", 1, &maps).add().text(), "port-maps-all-v6");
    }

    #[test]
    fn who_marks() {
        let mut maps = one();
        maps.masquerade_all = true;
        let text = rules("cont1", 0, &maps).add().text();
        assert_eq!(
            text.matches("-j CNI-HOSTPORT-SETMARK\n").count(),
            1,
            "{text}"
        );
        assert!(!text.contains("-s "), "{text}");
        maps.mark = Mark::Chain("KUBE-MARK-MASQ".into());
        let text = rules("cont1", 0, &maps).add().text();
        assert!(text.contains("--dport 8080 -j KUBE-MARK-MASQ\n"), "{text}");
        assert!(!text.contains("SETMARK"), "{text}");
        let error = rules("cont1", 0, &maps)
            .repair(&Table::default())
            .unwrap_err();
        assert!(
            error.to_string().starts_with("externalSetMarkChain: "),
            "{error}"
        );
        assert!(error.to_string().contains("KUBE-MARK-MASQ"), "{error}");
        maps.snat = false;
        let text = rules("cont1", 0, &maps)
            .repair(&Table::default())
            .unwrap()
            .text();
        assert!(
            !text.contains("MASQ") && text.contains("DNAT --to"),
            "{text}"
        );
    }

    #[test]
    fn ports_in_groups_that_keep_their_order() {
        let mappings = (1..=31).map(|n| mapping(Protocol::Tcp, "", 1000 + n, n));
        let maps = rules("cont1", 0, &wanted(mappings.collect()));
        let counts: Vec<usize> = maps
            .entries
            .iter()
            .map(|entry| entry.value("--dports").unwrap().split(',').count())
            .collect();
        assert_eq!(counts, [15, 15, 1]);
        // Each is inserted at the front: the last one first.
        let text = maps.add().text();
        assert!(text.find("--dports 1031").unwrap() < text.find("--dports 1001,").unwrap());
    }

    #[test]
    fn what_the_container_had_is_replaced() {
        let table = after(&one());
        let other = wanted(vec![mapping(Protocol::Udp, "", 53, 53)]);
        let script = rules("cont1", 0, &other).repair(&table).unwrap();
        assert_golden(&script.text(), "port-maps-replace-v4");
    }

    #[test]
    fn mappings_to_another_address_stay() {
        let table = after(&wanted(vec![
            mapping(Protocol::Tcp, "", 8080, 80),
            mapping(Protocol::Tcp, "::1", 8081, 81),
        ]));
        let mut second = one();
        second.container = vec!["10.9.0.3/24".parse().unwrap()];
        let script = rules("cont1", 0, &second).repair(&table).unwrap();
        let text = script.text();
        let ours = text.find("--to-destination 10.9.0.3:80").unwrap();
        assert!(ours < text.find("--to-destination 10.9.0.2:80").unwrap());
        assert_eq!(text.matches("SETMARK\n").count(), 4, "{text}");
        assert_eq!(text.matches("-D ").count(), 0, "{text}");
        // Both have the same port: one entry of this kind is enough.
        let table = after(&one());
        let text = rules("cont1", 0, &second).repair(&table).unwrap().text();
        assert_eq!(text.matches("-D CNI-HOSTPORT-DNAT").count(), 1, "{text}");
        assert_eq!(text.matches("-I CNI-HOSTPORT-DNAT").count(), 1, "{text}");
    }

    #[test]
    fn another_mark_replaces_the_old_ones() {
        let mut maps = one();
        let table = after(&maps);
        maps.mark = Mark::Bit(0);
        let text = rules("cont2", 0, &maps).repair(&table).unwrap().text();
        for line in [
            "-D CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000",
            "-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x1/0x1",
            "-D CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
            "-A CNI-HOSTPORT-MASQ -m mark --mark 0x1/0x1 -j MASQUERADE",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn removal_knows_no_ports() {
        let table = Table::parse(&golden::read("port-maps-saved"));
        let none = Known::NOTHING;
        let script = remove(&owner("cont1"), &none, &table);
        assert_golden(&script.text(), "port-maps-remove");
        assert!(remove(&owner("other"), &none, &table).is_empty());
    }

    #[test]
    fn no_word_ends_the_line() {
        for word in ["", "a\nCOMMIT", "x\0"] {
            let mut maps = one();
            maps.conditions_v4 = vec![word.into()];
            let error = Rules::new(&owner("c"), maps.container[0], &maps).unwrap_err();
            assert!(error.to_string().starts_with("conditionsV4: "), "{error}");
        }
    }
}
