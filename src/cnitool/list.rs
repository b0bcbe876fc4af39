//! `cnitool list`: what a runtime would find.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::table::{self, Cell};
use super::{Options, output};
use crate::runtime::chain::find;
use crate::runtime::directory::{self, Directory};
use crate::runtime::network::{Network, ipam, plugin_type};

/// Prints a table of networks, then the files that hold none.
///
/// # Errors
/// When the directory cannot be listed.
pub fn run(options: &Options) -> Result<ExitCode> {
    let directory = directory::load(options.conf())?;
    let directories: Vec<PathBuf> = std::env::split_paths(options.path()).collect();
    let text = render(&directory, &|plugin| {
        find(plugin, &directories).map_or_else(
            |_missing| "NOT FOUND".to_owned(),
            |file| file.display().to_string(),
        )
    });
    output::answer(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

const HEADER: [&str; 5] = ["NAME", "VERSION", "FILE", "PLUGIN", "EXECUTABLE"];

fn render(directory: &Directory, locate: &dyn Fn(&str) -> String) -> String {
    let mut rows: Vec<Vec<Cell>> = vec![HEADER.map(Cell::from).into()];
    for network in &directory.networks {
        rows.extend(rows_of(network, locate));
    }
    let mut lines = if directory.networks.is_empty() {
        vec![format!("no networks in {}", directory.path.display())]
    } else {
        table::lines(&rows, false)
    };
    for (index, network) in directory.networks.iter().enumerate() {
        let first = directory
            .networks
            .iter()
            .take(index)
            .find(|earlier| earlier.name == network.name);
        if let Some(first) = first {
            lines.push(format!(
                "never used: {}: \"{}\" is defined in {} already",
                network.file.display(),
                network.name,
                first.file.display()
            ));
        }
    }
    let broken = directory.broken.iter();
    lines.extend(broken.map(|broken| format!("broken: {broken}")));
    lines.join("\n") + "\n"
}

/// One row for each plugin and each delegate; the first one names the network.
fn rows_of(network: &Network, locate: &dyn Fn(&str) -> String) -> Vec<Vec<Cell>> {
    let mut name = network.name.clone();
    let mut version = if network.cni_version.is_empty() {
        "0.1.0".to_owned()
    } else {
        network.cni_version.clone()
    };
    let mut file = network.file.display().to_string();
    let mut rows = Vec::new();
    for plugin in &network.plugins {
        let ipam = ipam(&plugin.document).and_then(|ipam| plugin_type(&ipam));
        let ipam = ipam.map(|ipam| (format!("  {ipam} (ipam)"), locate(&ipam)));
        let own = (plugin.plugin.clone(), locate(&plugin.plugin));
        for (label, executable) in [Some(own), ipam].into_iter().flatten() {
            let row = [
                std::mem::take(&mut name),
                std::mem::take(&mut version),
                std::mem::take(&mut file),
                label,
                executable,
            ];
            rows.push(row.map(Cell::from).into());
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_table() {
        let network = |file: &str, text: &str| {
            Network::parse_list(Path::new(file), text.as_bytes().to_vec()).unwrap()
        };
        let directory = Directory {
            path: "/net.d".into(),
            networks: vec![
                network(
                    "/net.d/1.conflist",
                    r#"{"name": "dbnet", "cniVersion": "1.1.0", "plugins": [
                        {"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]}"#,
                ),
                network(
                    "/net.d/2.conflist",
                    r#"{"name": "dbnet", "plugins": [{"type": "bridge"}]}"#,
                ),
            ],
            broken: vec![directory::Broken {
                file: "/net.d/3.conf".into(),
                error: anyhow::anyhow!("odd"),
            }],
        };
        let locate = |plugin: &str| {
            if plugin == "portmap" {
                "NOT FOUND".into()
            } else {
                format!("/bin/{plugin}")
            }
        };
        assert_eq!(
            render(&directory, &locate),
            "\
NAME   VERSION  FILE               PLUGIN               EXECUTABLE
dbnet  1.1.0    /net.d/1.conflist  bridge               /bin/bridge
                                     host-local (ipam)  /bin/host-local
                                   portmap              NOT FOUND
dbnet  0.1.0    /net.d/2.conflist  bridge               /bin/bridge
never used: /net.d/2.conflist: \"dbnet\" is defined in /net.d/1.conflist already
broken: /net.d/3.conf: odd
"
        );
    }
}
