//! resolv.conf(5), as far as a result can express it.

use std::path::Path;

use anyhow::Result;

use crate::cni::error::{Code, detailed};
use crate::cni::result::Dns;
use crate::fsutil::{self, without_byte_order_mark};

/// The name servers that `path`, the configuration's `resolvConf`, names.
///
/// # Errors
/// Code 5 when the file cannot be read.
pub fn read(path: &Path) -> Result<Dns> {
    let bytes = std::fs::read(path).map_err(|error| {
        let reason = fsutil::in_words(&error);
        let sentence = format!("open {}: {reason}", path.display());
        detailed(Code::Io, sentence, "ipam.resolvConf cannot be read")
    })?;
    Ok(parse(&String::from_utf8_lossy(without_byte_order_mark(
        &bytes,
    ))))
}

/// Lists grow line by line, the last `domain` counts; everything else is skipped.
pub fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else {
            continue;
        };
        let all = std::iter::once(first.clone()).chain(words);
        match keyword.as_str() {
            "nameserver" => dns.nameservers.push(first),
            "domain" => dns.domain = first,
            "search" => dns.search.extend(all),
            "options" => dns.options.extend(all),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_keyword() {
        let dns = parse(
            "# nameserver 9.9.9.9\n ; nameserver 8.8.8.8\nnameserver 10.0.0.53 ignored\r\n\
             \tnameserver fd00::53\ndomain a\ndomain b\nsearch x y\nsearch z\n\
             options ndots:5 rotate\nnameserver\nsortlist 1\n\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.53", "fd00::53"]);
        assert_eq!(dns.domain, "b");
        assert_eq!(dns.search, ["x", "y", "z"]);
        assert_eq!(dns.options, ["ndots:5", "rotate"]);
        assert!(parse("").is_empty());
    }
}
