//! Converts the Markdown pages of `docs/plugins/` to manual pages.
//!
//! It knows the Markdown that the pages use: headings of two levels, paragraphs, lists of one
//! level, blocks of code, tables and links. A table becomes a list: the first cell of a row is
//! the tag, the other cells are the text.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use roff::{Inline, Roff, bold, italic, roman};

/// The name of the manual page that is made from `file` in `docs/plugins/`.
pub fn name(file: &str) -> String {
    match file.trim_end_matches(".md") {
        "README" => "cnibox-plugins".to_owned(),
        plugin => format!("cnibox-{plugin}"),
    }
}

/// The manual page `name`, in section 7, with the text of the Markdown document `text`.
pub fn roff(name: &str, text: &str) -> String {
    let mut page = Page {
        name: name.to_owned(),
        ..Page::default()
    };
    let title = name.to_uppercase();
    let version = concat!("cnibox ", env!("CARGO_PKG_VERSION"));
    // A page has no date: a build is the same on any day. (An empty argument would be left out.)
    let title = [title.as_str(), "7", " ", version, "cnibox"];
    page.roff.control("TH", title);
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        page.event(event);
    }
    page.roff.control("SH", ["SEE ALSO"]);
    let mut others = vec![
        bold("cnibox"),
        roman("(1), "),
        bold("cnitool"),
        roman("(1)"),
    ];
    if name != "cnibox-plugins" {
        others.extend([roman(", "), bold("cnibox-plugins"), roman("(7)")]);
    }
    page.roff.text(others);
    page.roff.render()
}

/// A manual page that is being written.
#[derive(Default)]
struct Page {
    name: String,
    roff: Roff,
    /// The text of the current block or cell.
    inlines: Vec<Inline>,
    /// How the text that comes next is set.
    font: Font,
    /// Where the current link leads.
    target: String,
    /// Whether the summary, which is the first paragraph, has been written.
    has_summary: bool,
    /// Whether the text belongs to an item of a list.
    is_item: bool,
    is_code: bool,
    /// The head of the current table.
    head: Vec<String>,
    /// The finished cells of the current row.
    cells: Vec<Vec<Inline>>,
}

#[derive(Default, Clone, Copy)]
enum Font {
    #[default]
    Roman,
    Italic,
    Bold,
}

impl Page {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.is_code => {
                for line in text.lines() {
                    self.roff.text([roman(line)]);
                }
            }
            Event::Text(text) => self.inlines.push(match self.font {
                Font::Roman => roman(text.as_ref()),
                Font::Italic => italic(text.as_ref()),
                Font::Bold => bold(text.as_ref()),
            }),
            Event::Code(text) => self.inlines.push(bold(text.as_ref())),
            Event::SoftBreak | Event::HardBreak => self.inlines.push(roman(" ")),
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Emphasis => self.font = Font::Italic,
            Tag::Strong => self.font = Font::Bold,
            Tag::Item => self.is_item = true,
            Tag::Link { dest_url, .. } => self.target = dest_url.to_string(),
            Tag::CodeBlock(_) => {
                self.is_code = true;
                self.roff.control("PP", []);
                self.roff.control("RS", ["4"]);
                self.roff.control("nf", []);
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(_) => self.heading(),
            TagEnd::Paragraph => self.paragraph(),
            TagEnd::Emphasis | TagEnd::Strong => self.font = Font::Roman,
            TagEnd::Link => self.link(),
            TagEnd::Item => {
                self.is_item = false;
                self.bullet();
            }
            TagEnd::CodeBlock => {
                self.is_code = false;
                self.roff.control("fi", []);
                self.roff.control("RE", []);
            }
            TagEnd::TableCell => self.cells.push(std::mem::take(&mut self.inlines)),
            TagEnd::TableHead => {
                let cells = std::mem::take(&mut self.cells);
                self.head = cells.iter().map(|cell| plain(cell)).collect();
            }
            TagEnd::TableRow => self.row(),
            _ => {}
        }
    }

    /// The heading above the summary is the title, which has been written; the others begin
    /// sections.
    fn heading(&mut self) {
        let title = plain(&std::mem::take(&mut self.inlines));
        if self.has_summary {
            self.roff.control("SH", [title.to_uppercase().as_str()]);
        }
    }

    fn paragraph(&mut self) {
        if self.is_item {
            return;
        }
        let inlines = std::mem::take(&mut self.inlines);
        if !self.has_summary {
            self.has_summary = true;
            let text = plain(&inlines);
            let sentence = text.split(". ").next().unwrap_or_default();
            let mut letters = sentence.trim_end_matches('.').chars();
            let first = letters.next().map(|letter| letter.to_ascii_lowercase());
            let summary: String = first.into_iter().chain(letters).collect();
            self.roff.control("SH", ["NAME"]);
            self.roff
                .text([roman(format!("{} - {summary}", self.name))]);
            self.roff.control("SH", ["DESCRIPTION"]);
        }
        self.roff.control("PP", []);
        self.roff.text(inlines);
    }

    fn bullet(&mut self) {
        self.roff.control("IP", ["\\(bu", "2"]);
        self.roff.text(std::mem::take(&mut self.inlines));
    }

    /// Names the manual page, or the file of the sources, that a link leads to.
    fn link(&mut self) {
        let target = std::mem::take(&mut self.target);
        let path = target.split('#').next().unwrap_or_default();
        if let Some(file) = path.strip_prefix("../") {
            let sources = format!(" (docs/{file} in the sources)");
            self.inlines.push(roman(sources));
        } else if path.strip_suffix(".md").is_some() {
            self.inlines.push(roman(" ("));
            self.inlines.push(bold(name(path)));
            self.inlines.push(roman("(7))"));
        }
    }

    fn row(&mut self) {
        let cells = std::mem::take(&mut self.cells);
        let Some((tag, rest)) = cells.split_first() else {
            return;
        };
        let Some((text, facts)) = rest.split_last() else {
            return;
        };
        self.roff.control("TP", []);
        self.roff.text([bold(plain(tag))]);
        let names = self.head.iter().skip(1);
        let mut line = Vec::new();
        for (name, fact) in names.zip(facts) {
            let separator = if line.is_empty() { "" } else { "; " };
            line.extend([roman(separator), italic(name.as_str()), roman(": ")]);
            line.extend(fact.iter().cloned());
        }
        if !line.is_empty() {
            self.roff.text(line);
            self.roff.control("br", []);
        }
        self.roff.text(text.clone());
    }
}

/// The text without its fonts.
fn plain(inlines: &[Inline]) -> String {
    let text = |inline: &Inline| match inline {
        Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text.clone(),
        Inline::LineBreak => " ".to_owned(),
    };
    inlines.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page without the definitions that roff puts in front of it.
    fn body(markdown: &str) -> String {
        let page = roff("cnibox-x", markdown);
        page.split_once(".TH").unwrap().1.to_owned()
    }

    #[test]
    fn the_first_sentence_is_the_summary() {
        let page = body("# x\n\nDoes `it`. And more.\n\n## Keys\n");
        assert!(
            page.contains(".SH NAME\ncnibox\\-x \\- does it\n.SH DESCRIPTION\n"),
            "{page}"
        );
        assert!(page.contains("Does \\fBit\\fR. And more."), "{page}");
        assert!(page.contains(".SH KEYS\n"), "{page}");
    }

    #[test]
    fn a_row_is_a_tagged_paragraph() {
        let page = body("| key | type | meaning |\n|-|-|-|\n| `mtu` | integer | In bytes. |\n");
        let row = ".TP\n\\fBmtu\\fR\n\\fItype\\fR: integer\n.br\nIn bytes.\n";
        assert!(page.contains(row), "{page}");
    }

    #[test]
    fn links_name_pages_and_files() {
        let page =
            body("x\n\n[keys](README.md#keys), [bridge](bridge.md), [more](../waits.md#a)\n");
        for expected in [
            "keys (\\fBcnibox\\-plugins\\fR(7))",
            "bridge (\\fBcnibox\\-bridge\\fR(7))",
            "more (docs/waits.md in the sources)",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
    }

    #[test]
    fn code_keeps_its_lines() {
        let page = body("x\n\n```json\n{\n  \"a\": 1\n}\n```\n\n* one\n* two\n");
        assert!(page.contains(".nf\n{\n  \"a\": 1\n}\n.fi\n"), "{page}");
        assert!(page.contains("two\n"), "{page}");
    }
}
