//! Tables for people: columns padded to their widest cell, and colour on a terminal.

use std::io::IsTerminal;

/// What a cell's colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// All is well.
    Good,
    /// Worth a look.
    Warning,
    /// Something is wrong.
    Bad,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell whose colour says something.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        let text = text.into();
        Self { text, tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Whether answers are coloured: on a terminal, unless `NO_COLOR` (no-color.org) is set.
#[expect(
    clippy::disallowed_methods,
    reason = "the environment says what the person wants"
)]
pub fn is_coloured() -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_unwanted && std::io::stdout().is_terminal()
}

/// `text` in the colour of `tone`.
pub fn paint(text: &str, tone: Tone, is_coloured: bool) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Heading => "1",
        Tone::Good => "32",
        Tone::Warning => "33",
        Tone::Bad => "31",
    };
    if is_coloured && !text.is_empty() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The rows as lines, two spaces between columns, none at the end.
pub fn lines(rows: &[Vec<Cell>], is_coloured: bool) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.text.chars().count().max(*width);
        }
    }
    let line = |row: &Vec<Cell>| {
        let filled = row.iter().rposition(|cell| !cell.text.is_empty());
        let row = row.get(..filled.map_or(0, |last| last + 1));
        let row = row.unwrap_or_default();
        let mut line = String::new();
        for (number, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(&paint(&cell.text, cell.tone, is_coloured));
            if number + 1 < row.len() {
                let rest = width - cell.text.chars().count();
                line.push_str(&" ".repeat(rest + 2));
            }
        }
        line
    };
    rows.iter().map(line).collect()
}

/// A row of headings.
pub fn headings(names: &[&str]) -> Vec<Cell> {
    let toned = |name: &&str| Cell::toned(*name, Tone::Heading);
    names.iter().map(toned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_the_colour() {
        let rows = vec![
            headings(&["A", "B", "C"]),
            vec!["long".into(), Cell::toned("é", Tone::Bad), "".into()],
            vec!["".into(), "y".into(), "z".into()],
        ];
        assert_eq!(lines(&rows, false), ["A     B  C", "long  é", "      y  z"]);
        assert_eq!(
            lines(&rows, true)[1],
            "long  \x1b[31mé\x1b[0m",
            "colour takes no room"
        );
    }
}
