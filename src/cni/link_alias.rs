//! The alias of a link that spells out the attachment it belongs to, as `ip -d link` shows it:
//! `cni network NETWORK interface IFNAME container ID`.

use super::invocation::Attachment;

/// The kernel's limit on an alias is below `IFALIASZ`, 256, and includes the zero that
/// ours are sent with.
const LIMIT: usize = 254;

/// The alias of links that belong to `attachment`. A long container id is cut.
pub fn of(network: &str, attachment: &Attachment) -> String {
    let Attachment {
        container_id,
        ifname,
    } = attachment;
    // Names and ids are ASCII: cutting bytes cuts no character.
    let mut alias = format!("{}{ifname} container {container_id}", start(network));
    alias.truncate(LIMIT);
    alias
}

/// How the aliases of all links in `network` start. There is no blank in a name, so
/// that none is the start of another's.
pub fn start(network: &str) -> String {
    format!("cni network {network} interface ")
}

/// The network, the interface and the container that an alias of ours names; a long container
/// id is cut.
pub fn parse(alias: &str) -> Option<(&str, &str, &str)> {
    if alias.contains(char::is_control) {
        return None;
    }
    let names = alias.strip_prefix("cni network ")?;
    let (network, names) = names.split_once(" interface ")?;
    let (ifname, container_id) = names.split_once(" container ")?;
    Some((network, ifname, container_id))
}
