//! What holds for everything that `iptables-save` may print, and for everything that is
//! given to `iptables-restore`.

use crate::cni::invocation::Attachment;
use crate::netfilter::known::Known;
use crate::netfilter::model::{Owner, PortMaps};

use crate::netfilter::iptables::masquerade;
use crate::netfilter::iptables::owned;
use crate::netfilter::iptables::port_maps;
use crate::netfilter::iptables::rule::{Rule, Script, Table};
use crate::netfilter::iptables::tool::Family;

/// Every command of a script is one line: nothing in a rule can end it and begin another.
fn assert_lines(script: &Script) {
    let text = script.text();
    let lines: Vec<&str> = text.split('\n').collect();
    let Some(commands) = lines
        .strip_prefix(&["*nat"])
        .and_then(|lines| lines.strip_suffix(&["COMMIT", ""]))
    else {
        assert!(text.is_empty(), "{text}");
        return;
    };
    for command in commands {
        let verb = command.get(..3).unwrap_or_default();
        let verbs = ["-C ", "-A ", "-I ", "-D ", "-N ", "-F ", "-X ", "-S "];
        assert!(verbs.contains(&verb), "{command:?} in {text}");
    }
}

/// What was saved is printed back as it was read; what is collected are rules that are
/// there, and no chain but private ones.
pub fn table(saved: &[u8]) {
    let table = Table::parse(&String::from_utf8_lossy(saved));
    let printed: Vec<String> = table
        .rules
        .iter()
        .map(|rule| format!("-A {rule}\n"))
        .collect();
    assert_eq!(Table::parse(&printed.concat()).rules, table.rules);
    let attachment = Attachment {
        container_id: "a".into(),
        ifname: "eth0".into(),
    };
    for valid in [&[][..], std::slice::from_ref(&attachment)] {
        for kind in [masquerade::KIND, port_maps::KIND] {
            let script = owned::collect(&kind, "net1", valid, &table);
            assert_lines(&script);
            for line in script.text().lines() {
                let rule = line.strip_prefix("-D ").map(|rule| format!("-A {rule}\n"));
                assert!(rule.is_none_or(|rule| printed.contains(&rule)), "{line}");
                let chain = ["-X ", "-F "]
                    .iter()
                    .find_map(|verb| line.strip_prefix(verb));
                let chain = chain.map(|chain| Table::parse(&format!("-A {chain}\n")).rules);
                let is_private = |rules: Vec<Rule>| {
                    let mut chains = rules.iter().map(|rule| rule.chain.as_str());
                    chains.all(owned::is_private)
                };
                assert!(chain.is_none_or(is_private), "{line}");
            }
        }
    }
    let owner = Owner {
        network: "net1".into(),
        attachment,
    };
    let rules = masquerade::Rules::new(&owner, Family::V4, &[]);
    assert_lines(&rules.repair(&table));
    assert_lines(&rules.remove_found(&Known::NOTHING, &table));
}

/// What `owner` wants becomes lines of ours only, or is refused.
pub fn port_maps(owner: &Owner, wanted: &PortMaps) {
    for container in &wanted.container {
        if let Ok(rules) = port_maps::Rules::new(owner, *container, wanted) {
            assert_lines(&rules.add());
            if let Ok(script) = rules.repair(&Table::default()) {
                assert_lines(&script);
            }
        }
    }
}
