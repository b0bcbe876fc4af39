//! Rules of a table as data, and the text in which `iptables-save` prints and
//! `iptables-restore` reads them.
//!
//! Arguments are kept in the spelling and order of `iptables-save`, so that a wanted rule
//! and one that was found can be compared.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

/// One rule: a chain and the arguments behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Where it stands.
    pub chain: String,
    /// What is behind that, as `iptables-save` has it.
    pub args: Vec<Cow<'static, str>>,
}

impl Rule {
    /// The rule of `chain` with these arguments.
    pub fn new<A: AsRef<str>>(chain: &str, args: impl IntoIterator<Item = A>) -> Self {
        Self {
            chain: chain.to_owned(),
            args: args
                .into_iter()
                .map(|arg| arg.as_ref().to_owned().into())
                .collect(),
        }
    }

    /// A rule with the packets that it has met, from a line of `iptables-save -c`:
    /// `[3:180] -A CHAIN …`.
    pub fn parse_counted(line: &str) -> Option<(u64, Self)> {
        let (packets, rule) = line.strip_prefix('[')?.split_once(':')?;
        let (_, rule) = rule.split_once("] ")?;
        let rule = Table::parse(rule).rules.pop()?;
        Some((packets.parse().ok()?, rule))
    }

    /// The argument that follows `option`.
    pub fn value(&self, option: &str) -> Option<&str> {
        let at = self.args.iter().position(|arg| arg == option)?;
        self.args.get(at + 1).map(AsRef::as_ref)
    }

    /// What the match `comment` says.
    pub fn comment(&self) -> Option<&str> {
        self.value("--comment")
    }

    /// The chain that the rule jumps to, or its target if that has no options: these are
    /// printed last.
    pub fn jump(&self) -> Option<&str> {
        match self.args.as_slice() {
            [.., option, target] if option == "-j" => Some(target),
            _ => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_quoted(f, &self.chain)?;
        for arg in &self.args {
            f.write_char(' ')?;
            write_quoted(f, arg)?;
        }
        Ok(())
    }
}

/// Writes `arg` so that it is read back as one argument.
fn write_quoted(to: &mut impl Write, arg: &str) -> fmt::Result {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!-_./:,+=[]%@".contains(&byte);
    if !arg.is_empty() && arg.bytes().all(plain) {
        return to.write_str(arg);
    }
    to.write_char('"')?;
    for c in arg.chars() {
        if c == '"' || c == '\\' {
            to.write_char('\\')?;
        }
        to.write_char(c)?;
    }
    to.write_char('"')
}

/// The arguments on a line.
fn split(line: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut current = None::<String>;
    let mut inside = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                inside = !inside;
                current.get_or_insert_default();
            }
            '\\' if inside => current.get_or_insert_default().extend(chars.next()),
            c if c.is_ascii_whitespace() && !inside => args.extend(current.take()),
            c => current.get_or_insert_default().push(c),
        }
    }
    args.extend(current);
    args
}

/// A table as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// The chains, by name.
    pub chains: BTreeSet<String>,
    /// The rules, in the order of the listing.
    pub rules: Vec<Rule>,
}

impl Table {
    /// Reads what `iptables-save -t TABLE`, or `-S`, prints.
    pub fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':').or_else(|| line.strip_prefix("-N ")) {
                let name = chain.split_ascii_whitespace().next();
                table.chains.extend(name.map(str::to_owned));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let mut args = split(rule).into_iter();
                if let Some(chain) = args.next() {
                    let args = args.map(Cow::Owned).collect();
                    table.rules.push(Rule { chain, args });
                }
            }
        }
        table
    }

    /// The rules that lead into `chain`.
    pub fn jumps<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules
            .iter()
            .filter(move |rule| rule.jump() == Some(chain))
    }
}

/// The tables that we have rules in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableName {
    /// For translating addresses.
    #[default]
    Nat,
    /// For letting packets through.
    Filter,
}

impl TableName {
    /// As the tools call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// Commands for one atomic change of a table: `nat`, unless it was made for another one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    table: TableName,
    /// A line for each.
    commands: String,
}

impl Script {
    /// One that changes `table`.
    pub fn of(table: TableName) -> Self {
        Self {
            table,
            ..Self::default()
        }
    }

    /// Fails unless the rule exists.
    pub fn assert(&mut self, rule: &Rule) {
        self.rule("-C", rule);
    }

    /// Appends the rule to its chain.
    pub fn append(&mut self, rule: &Rule) {
        self.rule("-A", rule);
    }

    /// Inserts in front of all rules of the chain.
    pub fn insert(&mut self, rule: &Rule) {
        self.rule("-I", rule);
    }

    /// Fails unless the rule exists.
    pub fn delete(&mut self, rule: &Rule) {
        self.rule("-D", rule);
    }

    /// Fails if the chain exists.
    pub fn create_chain(&mut self, chain: &str) {
        self.chain("-N", chain);
    }

    /// Removes the rules of the chain. Fails unless it exists.
    pub fn flush_chain(&mut self, chain: &str) {
        self.chain("-F", chain);
    }

    /// Fails unless the chain exists, is empty and has no rule leading into it.
    pub fn delete_chain(&mut self, chain: &str) {
        self.chain("-X", chain);
    }

    /// Prints the rules of the chain. Fails unless it exists.
    pub fn list_chain(&mut self, chain: &str) {
        self.chain("-S", chain);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// The input of `iptables-restore --noflush`.
    pub fn text(&self) -> String {
        format!("*{}\n{}COMMIT\n", self.table.as_str(), self.commands)
    }

    fn rule(&mut self, command: &str, rule: &Rule) {
        self.command(command, |line| write!(line, "{rule}"));
    }

    fn chain(&mut self, command: &str, chain: &str) {
        self.command(command, |line| write_quoted(line, chain));
    }

    fn command(&mut self, command: &str, about: impl FnOnce(&mut String) -> fmt::Result) {
        self.commands.push_str(command);
        self.commands.push(' ');
        // A text takes whatever is written.
        about(&mut self.commands).ok();
        self.commands.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-nft-save v1.8.9 (nf_tables) on Sun Nov 22 06:00:27 2026
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [12:720]
:CNI-DN-01d424cb2a9303e21c6e9 - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING ! -d 10.0.0.0/8 -m comment --comment "it's \"odd\" \\ really" -j SNAT --to-source 1.2.3.4
-A POSTROUTING -m comment --comment "" -j ACCEPT
-A CNI-DN-01d424cb2a9303e21c6e9 -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::2]:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net1\" id: \"cont1\"" -m multiport --dports 8080,8443 -j CNI-DN-01d424cb2a9303e21c6e9
COMMIT
# Completed on Sun Nov 22 06:00:27 2026
"#;

    #[test]
    fn what_was_saved_is_read_and_printed_back() {
        let table = Table::parse(SAVED);
        assert_eq!(table.chains.len(), 4);
        assert!(table.chains.contains("CNI-DN-01d424cb2a9303e21c6e9"));
        let printed: Vec<String> = table
            .rules
            .iter()
            .map(|rule| format!("-A {rule}"))
            .collect();
        let lines: Vec<&str> = SAVED.lines().filter(|l| l.starts_with("-A")).collect();
        assert_eq!(printed, lines);
        assert_eq!(table.rules[1].comment(), Some(r#"it's "odd" \ really"#));
        assert_eq!(table.rules[1].jump(), None);
        assert_eq!(table.rules[2].comment(), Some(""));
        let entry: Vec<&Rule> = table.jumps("CNI-DN-01d424cb2a9303e21c6e9").collect();
        assert_eq!(entry, [&table.rules[4]]);
        assert_eq!(entry[0].comment(), Some(r#"dnat name: "net1" id: "cont1""#));
        assert_eq!(entry[0].value("--dports"), Some("8080,8443"));
    }

    /// Found by fuzzing.
    #[test]
    fn a_chain_with_a_space_stays_one_word() {
        let rules = Table::parse("-A \"a b\" -j c").rules;
        assert_eq!(Table::parse(&format!("-A {}", rules[0])).rules, rules);
    }

    #[test]
    fn garbage_is_not_a_rule() {
        let table = Table::parse("-A\n:\n-A  \nPOSTROUTING\n-A X \"open -j Y\n\0\n");
        assert!(table.chains.is_empty());
        assert_eq!(table.rules, [Rule::new("X", ["open -j Y"])]);
    }

    #[test]
    fn a_script_is_one_transaction() {
        let mut script = Script::default();
        assert!(script.is_empty());
        script.create_chain("C");
        script.insert(&Rule::new("C", ["-s", "10.0.0.1/32", "", "a b\"c"]));
        assert_eq!(
            script.text(),
            "*nat\n-N C\n-I C -s 10.0.0.1/32 \"\" \"a b\\\"c\"\nCOMMIT\n"
        );
    }
}
