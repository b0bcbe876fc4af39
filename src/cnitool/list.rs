//! `cnitool list`: what a runtime would find.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::table::{self, Cell, Line, Tone, headings};
use super::{ListArgs, Options, output};
use crate::cni::json::{self as wire, Object};
use crate::runtime::chain::find;
use crate::runtime::directory::{self, Directory};
use crate::runtime::network::{Network, ipam, plugin_type};

/// Prints a table of networks, then the files that hold none.
///
/// # Errors
/// When the directory cannot be listed.
pub fn run(options: &Options, args: &ListArgs) -> Result<ExitCode> {
    let directory = directory::load(options.conf())?;
    let directories: Vec<PathBuf> = std::env::split_paths(options.path()).collect();
    let locate = |plugin: &str| find(plugin, &directories).ok();
    if args.json {
        let mut document = wire::pretty(&document(&directory, &locate))?;
        document.push(b'\n');
        output::document(document)?;
    } else {
        output::lines(&render(&directory, &locate))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the executable of a plugin.
type Locate<'a> = &'a dyn Fn(&str) -> Option<PathBuf>;

/// Everything that was found. The keys are a contract: none goes or changes its meaning.
#[derive(Serialize)]
struct Document {
    networks: Vec<Value>,
    broken: Vec<Value>,
}

fn document(directory: &Directory, locate: Locate<'_>) -> Document {
    let plugin = |name: &str, ipam: Option<Value>| {
        let executable = locate(name).map(|file| file.display().to_string());
        json!({"type": name, "executable": executable, "ipam": ipam})
    };
    let network = |network: &Network| {
        let plugins = network.plugins.iter().map(|configured| {
            let ipam = ipam_type(&configured.document).map(|ipam| {
                let executable = locate(&ipam).map(|file| file.display().to_string());
                json!({"type": ipam, "executable": executable})
            });
            plugin(&configured.plugin, ipam)
        });
        json!({
            "name": network.name,
            "cniVersion": version(network),
            "file": network.file.display().to_string(),
            "shadowedBy": earlier(directory, network).map(|first| first.file.display().to_string()),
            "plugins": plugins.collect::<Vec<_>>(),
        })
    };
    let broken = directory.broken.iter().map(|broken| {
        json!({
            "file": broken.file.display().to_string(),
            "error": format!("{:#}", broken.error),
        })
    });
    Document {
        networks: directory.networks.iter().map(network).collect(),
        broken: broken.collect(),
    }
}

/// The network that is used in place of this one.
fn earlier<'a>(directory: &'a Directory, network: &Network) -> Option<&'a Network> {
    let mut networks = directory.networks.iter();
    networks
        .find(|first| first.name == network.name)
        .filter(|first| first.file != network.file)
}

fn version(network: &Network) -> &str {
    if network.cni_version.is_empty() {
        "0.1.0"
    } else {
        &network.cni_version
    }
}

fn ipam_type(plugin: &Object) -> Option<String> {
    ipam(plugin).and_then(|ipam| plugin_type(&ipam))
}

const HEADER: [&str; 5] = ["NAME", "VERSION", "FILE", "PLUGIN", "EXECUTABLE"];

fn render(directory: &Directory, locate: Locate<'_>) -> Vec<Line> {
    let mut rows = vec![headings(&HEADER)];
    for network in &directory.networks {
        rows.extend(rows_of(network, locate));
    }
    let mut lines = if directory.networks.is_empty() {
        vec![format!("no networks in {}", directory.path.display()).into()]
    } else {
        table::lines(&rows)
    };
    let mut tell = |tone, text: String| lines.push(Line::toned(text, tone));
    for network in &directory.networks {
        if let Some(first) = earlier(directory, network) {
            let (file, first_file) = (network.file.display(), first.file.display());
            let name = &first.name;
            let text = format!("never used: {file}: \"{name}\" is defined in {first_file} already");
            tell(Tone::Warning, text);
        }
    }
    for broken in &directory.broken {
        tell(Tone::Bad, format!("broken: {broken}"));
    }
    lines
}

/// One row for each plugin and each delegate; the first one names the network.
fn rows_of(network: &Network, locate: Locate<'_>) -> Vec<Vec<Cell>> {
    let mut name = network.name.clone();
    let mut version = version(network).to_owned();
    let mut file = network.file.display().to_string();
    let executable = |plugin: &str| match locate(plugin) {
        Some(file) => Cell::from(file.display().to_string()),
        None => Cell::toned("NOT FOUND", Tone::Bad),
    };
    let mut rows = Vec::new();
    for plugin in &network.plugins {
        let ipam = ipam_type(&plugin.document);
        let ipam = ipam.map(|ipam| (format!("  {ipam} (ipam)"), executable(&ipam)));
        let own = (plugin.plugin.clone(), executable(&plugin.plugin));
        for (label, executable) in [Some(own), ipam].into_iter().flatten() {
            rows.push(vec![
                std::mem::take(&mut name).into(),
                std::mem::take(&mut version).into(),
                std::mem::take(&mut file).into(),
                label.into(),
                executable,
            ]);
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
        let locate =
            |plugin: &str| (plugin != "portmap").then(|| PathBuf::from(format!("/bin/{plugin}")));
        let lines = render(&directory, &locate);
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(
            lines.concat(),
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
        let document = serde_json::to_value(document(&directory, &locate)).unwrap();
        let first = &document["networks"][0];
        assert_eq!(first["shadowedBy"], Value::Null);
        assert_eq!(first["plugins"][0]["ipam"]["executable"], "/bin/host-local");
        assert_eq!(first["plugins"][1]["executable"], Value::Null);
        let second = &document["networks"][1];
        assert_eq!(second["shadowedBy"], "/net.d/1.conflist");
        assert_eq!(document["broken"][0]["error"], "odd");
    }
}
