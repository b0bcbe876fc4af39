//! Go's regular expressions (RE2 syntax) in the words of the crate `regex`, so that an
//! expression means here what it means to the reference plugin.
//!
//! The crate reads nearly the same syntax. What differs is translated: `\Q…\E`, octal
//! numbers, classes that are ASCII in Go and Unicode in the crate, and characters that mean
//! themselves in Go and something else in the crate (`{`, `\<`, `[` and `&&` in brackets).

use std::iter::Peekable;
use std::str::Chars;

/// What Go refuses although the crate would take it, or takes in another sense.
pub const REFUSED: &str = "Go's syntax (RE2) is understood; what it refuses is refused here, \
    too: look-around (?=…) (?!…) (?<=…), back references \\1, flags other than i, m, s and U, \
    repetitions above 1000, and escapes of letters that it does not know";

/// The largest number of repetitions in Go.
const MOST_REPETITIONS: u32 = 1000;

/// The classes that both know by a name.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// `pattern` as the crate reads it.
///
/// # Errors
/// In words, what Go would refuse.
pub fn translate(pattern: &str) -> Result<String, String> {
    let mut translation = Translation {
        rest: pattern.chars().peekable(),
        out: String::new(),
    };
    while let Some(next) = translation.rest.next() {
        match next {
            '\\' => translation.escape(false)?,
            '[' => translation.class()?,
            '{' => translation.repetition()?,
            '(' => translation.group()?,
            other => translation.out.push(other),
        }
    }
    Ok(translation.out)
}

/// A pattern that is being read, and what was made of it.
struct Translation<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
}

impl Translation<'_> {
    /// What follows a backslash; `in_class` is between brackets.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let Some(next) = self.rest.next() else {
            return Err("it ends in a backslash".to_owned());
        };
        let ascii = |inside: &str| {
            if in_class {
                inside.to_owned()
            } else {
                format!("[{inside}]")
            }
        };
        match next {
            'Q' if !in_class => self.quoted(),
            'd' => self.out.push_str(&ascii("0-9")),
            'w' => self.out.push_str(&ascii("0-9A-Za-z_")),
            's' => self.out.push_str(&ascii(r"\t\n\x0C\r ")),
            'D' => self.out.push_str("[^0-9]"),
            'W' => self.out.push_str("[^0-9A-Za-z_]"),
            'S' => self.out.push_str(r"[^\t\n\x0C\r ]"),
            'b' if !in_class => self.out.push_str(r"(?-u:\b)"),
            // The crate lets no ASCII word end between the bytes of a character.
            'B' if !in_class => self.out.push_str(r"(?-u:\B)"),
            'A' | 'z' if !in_class => self.out.extend(['\\', next]),
            'p' | 'P' => self.unicode_class(next)?,
            'a' | 'f' | 'n' | 'r' | 't' | 'v' => self.out.extend(['\\', next]),
            'x' => self.hexadecimal()?,
            '0' => self.octal(next),
            // One digit alone would refer to a group.
            '1'..='7' if matches!(self.rest.peek(), Some('0'..='7')) => self.octal(next),
            other if other.is_ascii() && !other.is_ascii_alphanumeric() => self.literal(other),
            other => return Err(format!("\\{other} is no escape")),
        }
        Ok(())
    }

    /// What stands between `\Q` and `\E`, or the end.
    fn quoted(&mut self) {
        while let Some(next) = self.rest.next() {
            if next == '\\' && self.rest.next_if_eq(&'E').is_some() {
                return;
            }
            self.literal(next);
        }
    }

    /// A character that means itself.
    fn literal(&mut self, character: char) {
        if character.is_ascii_punctuation() || character.is_ascii_whitespace() {
            self.code(character.into());
        } else {
            self.out.push(character);
        }
    }

    /// The character with this number.
    fn code(&mut self, number: u32) {
        let code = format!("\\x{{{number:X}}}");
        self.out.push_str(&code);
    }

    /// Up to three octal digits, of which `first` is one.
    fn octal(&mut self, first: char) {
        let mut number = first.to_digit(8).unwrap_or_default();
        for _ in 0..2 {
            let Some(digit) = self.rest.next_if(|next| next.is_digit(8)) else {
                break;
            };
            number = number * 8 + digit.to_digit(8).unwrap_or_default();
        }
        self.code(number);
    }

    /// `\x7F` or `\x{10FFFF}`.
    fn hexadecimal(&mut self) -> Result<(), String> {
        let mut digits = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            loop {
                match self.rest.next() {
                    Some('}') => break,
                    Some(digit) => digits.push(digit),
                    None => return Err("\\x{ has no end".to_owned()),
                }
            }
        } else {
            digits.extend(self.rest.by_ref().take(2));
            if digits.len() < 2 {
                return Err("\\x needs two digits".to_owned());
            }
        }
        let is_number = digits.chars().all(|digit| digit.is_ascii_hexdigit());
        let number = u32::from_str_radix(&digits, 16).ok().filter(|_| is_number);
        match number.and_then(char::from_u32) {
            Some(character) => self.code(character.into()),
            None => return Err(format!("\\x{{{digits}}} is no character")),
        }
        Ok(())
    }

    /// `\pL` or `\p{Greek}`, behind its letter.
    fn unicode_class(&mut self, letter: char) -> Result<(), String> {
        self.out.extend(['\\', letter]);
        match self.rest.next() {
            Some('{') => {
                self.out.push('{');
                for next in self.rest.by_ref() {
                    self.out.push(next);
                    if next == '}' {
                        return Ok(());
                    }
                }
                Err(format!("\\{letter}{{ has no end"))
            }
            Some(name) if name.is_ascii_alphabetic() => {
                self.out.push(name);
                Ok(())
            }
            _ => Err(format!("\\{letter} names no class")),
        }
    }

    /// What follows a `[`.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        // A bracket ends the class only behind a member.
        let mut is_first = true;
        loop {
            let Some(next) = self.rest.next() else {
                return Err("missing closing ]".to_owned());
            };
            match next {
                ']' if !is_first => break,
                '[' if self.rest.peek() == Some(&':') => self.named_class()?,
                '\\' if self.is_at_set() => self.escape(true)?,
                first => self.range(first)?,
            }
            is_first = false;
        }
        self.out.push(']');
        Ok(())
    }

    /// Whether what follows a backslash stands for many characters.
    fn is_at_set(&mut self) -> bool {
        let next = self.rest.peek();
        next.is_some_and(|next| "dDsSwWpP".contains(*next))
    }

    /// A member of a class that begins with `first`: a character, or a range of them.
    fn range(&mut self, first: char) -> Result<(), String> {
        self.member(first)?;
        let mut ahead = self.rest.clone();
        let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|next| next != ']');
        if !is_range {
            return Ok(());
        }
        self.rest.next();
        self.out.push('-');
        match self.rest.next() {
            Some('\\') if self.is_at_set() => Err("a range ends in a class".to_owned()),
            Some(last) => self.member(last),
            None => Err("missing closing ]".to_owned()),
        }
    }

    /// One character of a class, which begins with `next`.
    fn member(&mut self, next: char) -> Result<(), String> {
        if next == '\\' {
            self.escape(true)
        } else {
            self.literal(next);
            Ok(())
        }
    }

    /// `[:alpha:]`, behind its `[`; any other bracket there means itself.
    fn named_class(&mut self) -> Result<(), String> {
        let text: String = self.rest.clone().collect();
        let Some((name, _)) = text.split_once(":]") else {
            self.literal('[');
            return Ok(());
        };
        let bare = name.trim_start_matches(':').trim_start_matches('^');
        if !CLASSES.contains(&bare) {
            return Err(format!("[{name}:] is no class"));
        }
        self.out.push('[');
        self.out.extend(self.rest.by_ref().take(name.len() + 2));
        Ok(())
    }

    /// What follows a `{`: how often, or nothing of the kind.
    fn repetition(&mut self) -> Result<(), String> {
        let text: String = self.rest.clone().collect();
        let inside = text.split_once('}').map(|(inside, _)| inside);
        let Some(inside) = inside.filter(|inside| is_repetition(inside)) else {
            self.literal('{');
            return Ok(());
        };
        let mut numbers = inside.split(',').filter(|number| !number.is_empty());
        let is_too_much = |number: &str| {
            let number = number.parse::<u32>();
            number.is_err() || number.is_ok_and(|number| number > MOST_REPETITIONS)
        };
        if numbers.any(is_too_much) {
            return Err(format!("{{{inside}}} repeats too often"));
        }
        self.out.push('{');
        self.out.extend(self.rest.by_ref().take(inside.len() + 1));
        Ok(())
    }

    /// What follows a `(`: of the extensions, names of groups and Go's flags.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        if self.rest.next_if_eq(&'?').is_none() {
            return Ok(());
        }
        self.out.push('?');
        let text: String = self.rest.clone().collect();
        let is_name = |text: &str| text.starts_with("P<") || text.starts_with('<');
        if is_name(&text) {
            // The crate refuses what is no name, look-behind among it.
            return Ok(());
        }
        let flags = text.split([':', ')']).next().unwrap_or_default();
        if !flags.chars().all(|flag| "imsU-".contains(flag)) {
            return Err(format!("(?{flags} is no group that Go knows"));
        }
        Ok(())
    }
}

/// `3`, `3,` or `3,5`.
fn is_repetition(inside: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match inside.split_once(',') {
        Some((least, most)) => is_number(least) && (most.is_empty() || is_number(most)),
        None => is_number(inside),
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    fn regex(pattern: &str) -> Result<Regex, String> {
        Regex::new(&translate(pattern)?).map_err(|error| error.to_string())
    }

    /// What Go 1.19's `regexp.MatchString` answers.
    #[test]
    fn expressions_mean_what_they_mean_in_go() {
        for (pattern, matching, others) in [
            (
                r"^\Qnet.core.somaxconn\E$",
                "net.core.somaxconn",
                "netXcore.somaxconn",
            ),
            (r"^\Qa.b", "a.b", "axb"),
            (r"^\Qa\b[\E.$", r"a\b[x", "abx"),
            (r"^x\Q\E*$", "xxx", "y"),
            ("(?i)^NET\\.CORE$", "net.core", "net,core"),
            ("^(?P<part>net|vm)\\.a$", "vm.a", "fs.a"),
            ("^(?<part>net|vm)\\.a$", "net.a", "fs.a"),
            ("^(?i:net)\\.a$", "NET.a", "NET.A"),
            ("^(?:a|b)c$", "bc", "c"),
            ("(?m)^b$", "a\nb", "ab"),
            ("(?s)^a.b$", "a\nb", "ab"),
            ("^a.b$", "axb", "a\nb"),
            (r"^\w+\.\d{2}$", "ab_1.42", "äb.42"),
            (r"^[\w.]+$", "a_1.b", "ä"),
            (r"^[\D]$", "x", "5"),
            (r"^\S\s\S$", "a b", "a\u{a0}b"),
            (r"\bcore\b", "net.core.x", "net.score"),
            (r"\Bore", "core", "ore"),
            ("^[[:alpha:]]+$", "abc", "ab1"),
            ("^[[:^alpha:]]+$", "12", "a"),
            ("^[[a]+$", "[a", "]"),
            ("^[]a]+$", "]a", "["),
            ("^[^]a]+$", "bc", "]"),
            ("^[a&&b]+$", "&ab", "c"),
            ("^[+--]$", ",", "."),
            (r"^[a-c-]$", "-", "d"),
            (r"^[\d-a]$", "-", "b"),
            (r"^[-a]$", "-", "b"),
            (r"^[\[-\]]$", "]", "^^"),
            ("^[a~~b]+$", "a~b", "c"),
            (r"^a{2}$", "aa", "a"),
            (r"^a{,2}$", "a{,2}", "aa"),
            (r"^a{x}$", "a{x}", "a"),
            (r"^\{a\}$", "{a}", "a"),
            (r"^\<a\>\/\_\-$", "<a>/_-", "a"),
            (r"^\x41\x{42}\103$", "ABC", "ABD"),
            (r"^\pL\p{Lu}$", "aB", "ab"),
            (r"^\p{Greek}+$", "αβ", "ab"),
            (r"^\PL$", "1", "a"),
            (r"\Aab\z", "ab", "abc"),
            ("a||b", "c", "\u{0}"),
            (r"^\t\a$", "\t\u{7}", "ta"),
        ] {
            let regex = regex(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert!(regex.is_match(matching), "{pattern}: {matching:?}");
            if pattern != "a||b" {
                assert!(!regex.is_match(others), "{pattern}: {others:?}");
            }
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for pattern in [
            r"a\1",
            r"\k<n>",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?<!a)",
            "(?x)a",
            "(?u)a",
            "(?R)a",
            r"\C",
            r"\<\h",
            "a{1001}",
            "a{1,2000}",
            "(",
            ")",
            "[a",
            "[z-a]",
            "*",
            r"\Z",
            r"\u0041",
            "a\\",
            r"\xZZ",
            r"\x{110000}",
            r"\p{Nonsense}",
            r"\p",
            "(?P<n",
            "(?P=n)",
            "[[:foo:]]",
        ] {
            assert!(regex(pattern).is_err(), "{pattern}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_panics(pattern in r"(\\Q|\\E|\[|\]|:|\{|\}|,|\(|\?|P<|\\|[a-zA-Z0-9.&~-])*") {
            drop(translate(&pattern).map(|pattern| Regex::new(&pattern)));
        }
    }
}
