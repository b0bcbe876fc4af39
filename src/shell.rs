//! Commands to copy: what `cnitool` and errors tell people to run.
//!
//! A command is a list of words, each quoted for the shell, so that no name in it is more than
//! a name. Nothing else makes such text: a test below looks for commands in format strings.

use std::fmt::{self, Display};

use crate::text;

/// One command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShellCommand(String);

/// Several commands, or one whose output goes into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellScript(String);

/// A [`ShellCommand`] of these words, each of which only needs to be `Display`.
macro_rules! shell {
    ($program:expr $(, $word:expr)* $(,)?) => {
        $crate::shell::ShellCommand::new($program) $(.arg(&$word))*
    };
}
pub(crate) use shell;

impl ShellCommand {
    /// The command that runs `program`, without any argument yet.
    pub fn new(program: impl Display) -> Self {
        Self(quote(&program.to_string()))
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, word: &impl Display) -> Self {
        self.0.push(' ');
        self.0.push_str(&quote(&word.to_string()));
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<W: Display>(self, words: impl IntoIterator<Item = W>) -> Self {
        words
            .into_iter()
            .fold(self, |command, word| command.arg(&word))
    }

    /// `statement` in the language of nft, its words as the arguments of `nft`. What stands in
    /// double quotes there is one word.
    pub fn nft(statement: &str) -> Self {
        let mut is_quoted = false;
        let words = statement.split(|c| {
            is_quoted ^= c == '"';
            c == ' ' && !is_quoted
        });
        Self::new("nft").args(words.filter(|word| !word.is_empty()))
    }

    /// `ip` in the network namespace at `path`, without arguments.
    pub fn ip_in(path: &str) -> Self {
        match named(path) {
            Some(name) => shell!["ip", "-n", name],
            None => Self::inside(path).arg(&"ip"),
        }
    }

    /// `tc` in the network namespace at `path`, without arguments.
    pub fn tc_in(path: &str) -> Self {
        match named(path) {
            Some(name) => shell!["tc", "-n", name],
            None => Self::inside(path).arg(&"tc"),
        }
    }

    /// What runs another command, which is to follow, in the network namespace at `path`.
    pub fn inside(path: &str) -> Self {
        match named(path) {
            Some(name) => shell!["ip", "netns", "exec", name],
            None => shell!["nsenter", format!("--net={path}")],
        }
    }

    /// This command with `other` as its further arguments, as `nsenter` and `sudo` want it.
    #[must_use]
    pub fn run(mut self, other: &Self) -> Self {
        self.0.push(' ');
        self.0.push_str(&other.0);
        self
    }

    /// This command with what `other` prints as its last argument.
    pub fn with_output_of(self, other: &Self) -> ShellScript {
        ShellScript(format!("{self} \"$({other})\""))
    }

    /// This, and `next` if it succeeds.
    pub fn and(self, next: impl Into<ShellScript>) -> ShellScript {
        ShellScript::from(self).and(next)
    }

    /// This with its output in `file`.
    pub fn into_file(self, file: &impl Display) -> ShellScript {
        ShellScript(format!("{self} > {}", quote(&file.to_string())))
    }
}

impl ShellScript {
    /// All of these, each if the one before succeeds.
    pub fn all(commands: impl IntoIterator<Item = ShellCommand>) -> Self {
        let commands: Vec<String> = commands.into_iter().map(|command| command.0).collect();
        Self(commands.join(" && "))
    }

    /// This, and `next` if it succeeds; either may be empty.
    #[must_use]
    pub fn and(self, next: impl Into<Self>) -> Self {
        let both = [self.0, next.into().0];
        let both: Vec<String> = both.into_iter().filter(|text| !text.is_empty()).collect();
        Self(both.join(" && "))
    }
}

/// What `ip netns` calls the namespace at `path`, if it has a name that is none but a name.
fn named(path: &str) -> Option<&str> {
    let name = ["/run/netns/", "/var/run/netns/"]
        .iter()
        .find_map(|directory| path.strip_prefix(directory))?;
    let is_name = !name.is_empty() && !name.starts_with('-') && !name.contains('/');
    is_name.then_some(name)
}

/// `word` as the shell reads it back. What a terminal would obey is written with escapes, which
/// all shells but the smallest know (POSIX.1-2024, 2.2.4).
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    // No shell takes this for more than a word, and it is in most rules.
    if word == "!=" {
        return word.to_owned();
    }
    // zsh looks for a program where a word begins with an equals sign.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if !word.contains(text::is_hazardous)
        && let Ok(quoted) = shlex::try_quote(word)
    {
        return quoted.into_owned();
    }
    let mut quoted = String::from("$'");
    for c in word.chars() {
        match c {
            // Shells that do not know these escapes take the quotes for plain ones: no quote may
            // stand between them.
            '\'' => quoted.push_str("\\x27"),
            '\\' => quoted.push_str("\\x5c"),
            c if text::is_hazardous(c) => {
                let mut bytes = [0; 4];
                let bytes = c.encode_utf8(&mut bytes).bytes();
                let escaped = bytes.flat_map(std::ascii::escape_default);
                quoted.extend(escaped.map(char::from));
            }
            c => quoted.push(c),
        }
    }
    quoted + "'"
}

impl Display for ShellCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Display for ShellScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ShellCommand> for ShellScript {
    fn from(command: ShellCommand) -> Self {
        Self(command.0)
    }
}

impl From<ShellCommand> for String {
    fn from(command: ShellCommand) -> Self {
        command.0
    }
}

impl From<ShellScript> for String {
    fn from(script: ShellScript) -> Self {
        script.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands that are told are made of words, never of a format string with names in it.
    #[test]
    fn no_command_is_a_format_string() {
        let command = regex::Regex::new(concat!(
            r#"(?:^|[\s`(;&|])(?:"#,
            r#"(?:ip|bridge)(?: -\S+(?: [^\s-]\S*)?)* (?:link|address|addr|route|rule|neighbour|netns|vlan|fdb) "#,
            r#"|sysctl (?:-\w+ )?net|nft (?:-\w+ )?(?:add|insert|delete|list|flush|create) "#,
            r#"|ip6?tables\S* -|tc (?:-|qdisc)|ss -|conntrack -|nsenter --|firewall-cmd --"#,
            r#"|printf '|tcpdump -|(?:cnitool|cnibox) [a-z]+ )[^`;]*\{"#,
            r#"|(?:^|[\s`(;&|])(?:rm|cat|df|namei|chmod|touch) (?:-\w+ |\d+ )?[^\s`;]*\{"#,
        ))
        .unwrap();
        let literal = regex::Regex::new(r#""((?:[^"\\]|\\[\s\S])*)""#).unwrap();
        assert!(command.is_match("see `ip -n c1 link show dev {name}`"));
        assert!(command.is_match("rm {file}") && command.is_match("cnitool gc {network}"));
        assert!(!command.is_match("create bridge {name}"));
        let src = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let mut found = Vec::new();
        let mut directories = vec![src.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let is_test = path.to_string_lossy().contains("test");
                if path.is_dir() && !is_test {
                    directories.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") && !is_test {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let product = text.split("#[cfg(test)]\nmod ").next().unwrap();
                    let lines = product.lines();
                    // Comments, and examples in help, which have no names in them.
                    let code: Vec<&str> = lines
                        .filter(|line| !line.trim_start().starts_with("//"))
                        .collect();
                    for text in literal.captures_iter(&code.join("\n")) {
                        let text = text.get(1).unwrap().as_str();
                        if command.is_match(text) && !text.starts_with("\\\nExamples:") {
                            found.push(format!("{}: {text}", path.display()));
                        }
                    }
                }
            }
        }
        assert_eq!(found, Vec::<String>::new(), "use shell!");
    }

    /// What bash makes of a command's words.
    fn read_back(command: &ShellCommand) -> Vec<String> {
        let script = format!("printf '%s\\0' {command}");
        #[expect(
            clippy::disallowed_methods,
            reason = "a real shell is the judge of quoting"
        )]
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.strip_suffix('\0')
            .unwrap()
            .split('\0')
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_shell_reads_the_same_words_back() {
        let words = [
            "plain-1.2/3:4@5%6+7=8,9",
            "",
            "a;id",
            "$(id)`id`",
            "it's",
            "\"'\\",
            "!x {1,2} ~ * ? #",
            "=ls",
            "two words",
            "a\x1b[31m;id",
            "line\nbreak'\\\u{202e}x\u{9b}9",
        ];
        let command = ShellCommand::new("echo").args(words);
        let read = read_back(&command);
        assert_eq!(read.get(1..).unwrap(), words);
        assert!(!command.to_string().contains(text::is_hazardous));
        assert!(
            command
                .to_string()
                .starts_with("echo plain-1.2/3:4@5%6+7=8,9 ")
        );
    }

    /// A shell without `$'…'` reads another word, but no more than one, and runs nothing.
    #[test]
    fn the_smallest_shell_runs_nothing_else() {
        let command = ShellCommand::new("printf").args(["%s.", "\x1b';id;#\\'"]);
        #[expect(
            clippy::disallowed_methods,
            reason = "a real shell is the judge of quoting"
        )]
        let read = std::process::Command::new("dash")
            .args(["-c", &command.to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8(read.stdout).unwrap();
        assert!(read.status.success() && read.stderr.is_empty(), "{text}");
        assert!(
            !text.contains("uid=") && text.matches('.').count() == 1,
            "{text}"
        );
    }

    #[test]
    fn strings_of_nft_stay_whole() {
        let command = ShellCommand::nft("add rule ip t c iifname \"a b;id\"  ct state != new");
        assert_eq!(
            command.to_string(),
            "nft add rule ip t c iifname '\"a b;id\"' ct state != new"
        );
    }

    #[test]
    fn namespaces_are_called_by_their_name_if_it_is_one() {
        let ip = |path: &str| ShellCommand::ip_in(path).to_string();
        assert_eq!(ip("/var/run/netns/c1"), "ip -n c1");
        assert_eq!(ip("/run/netns/a;id"), "ip -n 'a;id'");
        assert_eq!(ip("/run/netns/-x"), "nsenter --net=/run/netns/-x ip");
        assert_eq!(ip("/proc/7/ns/net"), "nsenter --net=/proc/7/ns/net ip");
        let inside = ShellCommand::inside("/run/netns/c1");
        assert_eq!(
            inside.run(&shell!["tc", "qdisc"]).to_string(),
            "ip netns exec c1 tc qdisc"
        );
    }

    #[test]
    fn scripts_join_what_succeeds() {
        let script = shell!["a", 1].and(shell!["b", "x y"]);
        assert_eq!(script.to_string(), "a 1 && b 'x y'");
        let nothing = ShellScript::all([]);
        assert_eq!(shell!["a"].and(nothing).to_string(), "a");
        let file = shell!["echo", "x;y"].into_file(&"/a b");
        assert_eq!(file.to_string(), "echo 'x;y' > '/a b'");
    }
}
