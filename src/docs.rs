//! Writes manual pages and completions for bash, zsh and fish into a directory that is laid
//! out as `/usr/share`: `cargo run --example docs DIR`. The Makefile runs it for packages; the
//! program does not contain it.

#![expect(
    clippy::expect_used,
    reason = "a step of a build says what failed and stops"
)]

// The root of an example looks for its modules beside itself.
#[path = "docs/page.rs"]
mod page;

use std::fs;
use std::path::{Path, PathBuf};

use clap_complete::Shell;

fn main() {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.expect("an argument: the directory to write into");
    let made = |name: &str| {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).expect("make a directory");
        dir
    };
    clap_mangen::generate_to(cnibox::manual(), made("man/man1")).expect("write manual pages");
    write_plugin_pages(&made("man/man7"));
    for mut command in cnibox::completions() {
        let name = command.get_name().to_owned();
        for (shell, place, file) in [
            (Shell::Bash, "bash-completion/completions", name.clone()),
            (Shell::Zsh, "zsh/vendor-completions", format!("_{name}")),
            (
                Shell::Fish,
                "fish/vendor_completions.d",
                format!("{name}.fish"),
            ),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, &name, &mut script);
            fs::write(made(place).join(file), script).expect("write completions");
        }
    }
}

/// Writes a manual page for each Markdown file in `docs/plugins/`.
fn write_plugin_pages(dir: &Path) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plugins");
    for entry in fs::read_dir(sources).expect("list docs/plugins") {
        let source = entry.expect("list docs/plugins").path();
        let file = source.file_name().and_then(|name| name.to_str());
        let name = page::name(file.expect("a file name in UTF-8"));
        let text = fs::read_to_string(&source).expect("read a page");
        let manual = page::roff(&name, &text);
        fs::write(dir.join(format!("{name}.7")), manual).expect("write a manual page");
    }
}
