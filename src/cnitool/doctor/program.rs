//! Whether a plugin's file can be run on this machine.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::{AccessFlags, access};

use crate::shell::shell;

/// Of `e_ident` and what follows (elf(5)): the class and the order of bytes, and the machine.
const IDENTITY: [std::ops::Range<usize>; 2] = [4..6, 18..20];

/// What keeps `file` from being run, and the command that mends it; `None` where nothing is
/// seen. `reinstall` is the command that brings a good one.
pub fn flaw(file: &Path, reinstall: String) -> Option<(String, String)> {
    if let Err(error) = access(file, AccessFlags::X_OK) {
        let what = format!("cannot be executed: {}", error.desc().to_lowercase());
        let is_allowed = file
            .metadata()
            .is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
        let mend = if is_allowed {
            remount("exec", file)
        } else {
            shell!["chmod", 755, file.display()].into()
        };
        return Some((what, mend));
    }
    let own = start(Path::new("/proc/self/exe"))?;
    let what = wrong(&start(file)?, &own, Path::exists)?;
    Some((what, reinstall))
}

/// The command that mounts the file system of `path` with another option.
pub fn remount(option: &str, path: &Path) -> String {
    let find = shell!["findmnt", "-no", "TARGET", "-T", path.display()];
    shell!["mount", "-o", format!("remount,{option}")]
        .with_output_of(&find)
        .into()
}

/// The first bytes of a file.
fn start(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(file).ok()?;
    file.take(128).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// What is wrong with a file that starts so, where this program starts with `own`.
fn wrong(start: &[u8], own: &[u8], is_there: impl FnOnce(&Path) -> bool) -> Option<String> {
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = String::from_utf8_lossy(line);
        let interpreter = line.split_whitespace().next().unwrap_or_default();
        let is_missing = !is_there(Path::new(interpreter));
        return is_missing.then(|| format!("needs {interpreter}, which is not there"));
    }
    if !start.starts_with(b"\x7fELF") {
        return Some("is no program".to_owned());
    }
    let mut identity = IDENTITY.into_iter();
    let is_alike = identity.all(|range| start.get(range.clone()) == own.get(range));
    (!is_alike).then(|| "is a program for another kind of machine".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_what_cannot_run() {
        let elf = |class, machine| {
            let mut start = b"\x7fELF".to_vec();
            start.extend([class, 1, 1]);
            start.resize(18, 0);
            start.extend([machine, 0]);
            start
        };
        let own = elf(2, 62);
        let of = |start: &[u8]| wrong(start, &own, |path| path == Path::new("/bin/sh"));
        assert_eq!(of(&elf(2, 62)), None);
        assert_eq!(of(b"#!/bin/sh -e\n"), None);
        let other = Some("is a program for another kind of machine".to_owned());
        assert_eq!(of(&elf(2, 183)), other);
        assert_eq!(of(&elf(1, 62)), other);
        assert_eq!(of(b"\x7fELF"), other, "cut off");
        assert_eq!(of(b""), Some("is no program".to_owned()));
        let missing = Some("needs /x, which is not there".to_owned());
        assert_eq!(of(b"#! /x\n"), missing);
    }
}
