//! Writes manual pages and completions for bash, zsh and fish into a directory, as they
//! are to be found below `/usr/share`: `cargo run --example docs DIR`. It is no part of
//! the program; the Makefile runs it for packages.

#![expect(
    clippy::expect_used,
    reason = "a step of a build says what failed and stops"
)]

use std::fs;
use std::path::PathBuf;

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
