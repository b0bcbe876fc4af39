//! Lines and tables for people: columns padded to their widest cell, and colour on a terminal.
//! A cell has no control characters in it; those of colours are added when it is printed.

use std::fmt;
use std::io::IsTerminal;

use crate::text;

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
        let text = text::escape(&text.into()).into_owned();
        Self { text, tone }
    }

    fn render(&self, is_coloured: bool) -> String {
        let text = &self.text;
        let code = match self.tone {
            Tone::Plain => return text.clone(),
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        if is_coloured && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.clone()
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A line: cells without anything between them. A line break in one of them is escaped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line(Vec<Cell>);

impl Line {
    /// A line whose colour says something.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Cell::toned(text, tone).into()
    }

    /// With more at its end.
    #[must_use]
    pub fn then(mut self, more: impl Into<Self>) -> Self {
        self.0.extend(more.into().0);
        self
    }

    /// As it is printed.
    pub fn render(&self, is_coloured: bool) -> String {
        let cells = self.0.iter();
        cells.map(|cell| cell.render(is_coloured)).collect()
    }
}

impl From<Cell> for Line {
    fn from(cell: Cell) -> Self {
        Self(vec![cell])
    }
}

impl<T: Into<String>> From<T> for Line {
    fn from(text: T) -> Self {
        Cell::from(text).into()
    }
}

/// Without colour.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Whether answers are coloured: on a terminal, unless `NO_COLOR` (no-color.org) is set.
#[expect(
    clippy::disallowed_methods,
    reason = "the environment says what the person wants"
)]
pub fn is_coloured() -> bool {
    let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_unwanted && is_terminal()
}

#[expect(clippy::disallowed_methods, reason = "it is only asked what it is")]
fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// The rows as lines, two spaces between columns, none at the end.
pub fn lines(rows: &[Vec<Cell>]) -> Vec<Line> {
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
        let mut line = Line::default();
        for (number, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.0.push(cell.clone());
            if number + 1 < row.len() {
                let rest = width - cell.text.chars().count();
                line.0.push(" ".repeat(rest + 2).into());
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
        let lines = lines(&rows);
        let plain: Vec<String> = lines.iter().map(ToString::to_string).collect();
        assert_eq!(plain, ["A     B  C", "long  é", "      y  z"]);
        assert_eq!(
            lines[1].render(true),
            "long  \x1b[31mé\x1b[0m",
            "colour takes no room"
        );
    }

    #[test]
    fn what_a_cell_says_is_all_that_it_does() {
        let rows = vec![
            vec!["a\x1b[2J\nb".into(), "c".into()],
            vec!["".into(), Cell::toned("\x1b", Tone::Bad)],
        ];
        let plain: Vec<String> = lines(&rows).iter().map(ToString::to_string).collect();
        assert_eq!(plain, ["a\\u{1b}[2J\\nb  c", "               \\u{1b}"]);
    }
}
