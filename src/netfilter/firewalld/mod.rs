//! firewalld, where it runs: what it should let through is told to it, for it would drop
//! what only rules of ours accept. It is reached over D-Bus, as in the reference.

mod bus;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::failure::{Failure, Kind};
use crate::netfilter::firewalld::bus::{Bus, Object, Refusal, Value};

const SERVICE: &str = "org.fedoraproject.FirewallD1";

/// What has the zones.
const ZONES: Object = Object {
    service: SERVICE,
    path: "/org/fedoraproject/FirewallD1",
    interface: "org.fedoraproject.FirewallD1.zone",
};

/// A running firewalld.
#[derive(Debug)]
pub struct Firewalld {
    bus: Bus,
}

impl Firewalld {
    /// The one that runs here, if one does.
    ///
    /// # Errors
    /// When there is a bus that does not tell.
    pub fn find() -> Result<Option<Self>> {
        Self::find_within(bus::PATIENCE)
    }

    /// As [`Firewalld::find`], with less patience for each answer.
    ///
    /// # Errors
    /// As there.
    pub fn find_within(patience: Duration) -> Result<Option<Self>> {
        let Some(mut bus) = Bus::open(patience)? else {
            return Ok(None);
        };
        Ok(bus.is_served(SERVICE)?.then_some(Self { bus }))
    }

    /// Lets everything from `address` into `zone`, until firewalld is reloaded. An address that
    /// is in another zone stays there, and its zone is returned: somebody wanted it so.
    ///
    /// # Errors
    /// When it refuses; to have done so already is none.
    pub fn add_source(&mut self, zone: &str, address: IpAddr) -> Result<Option<String>> {
        let refusal = match self.ask("addSource", &[zone], address)? {
            Ok(_) => return Ok(None),
            Err(refusal) if refusal.is("ZONE_ALREADY_SET") => return Ok(None),
            Err(refusal) => refusal,
        };
        if refusal.is("ZONE_CONFLICT")
            && let Some(other) = self.zone_of_source(address)?
        {
            return Ok(Some(other));
        }
        let source = IpNet::from(address);
        Err(refused(
            &refusal,
            &format!("failed to add the address {source} to {zone} zone"),
        ))
    }

    /// Takes it out of `zone`; where it is in none or in another, nothing happens.
    ///
    /// # Errors
    /// When it is there and stays.
    pub fn remove_source(&mut self, zone: &str, address: IpAddr) -> Result<()> {
        const ABSENT: [&str; 4] = [
            "UNKNOWN_SOURCE",
            "NOT_ENABLED",
            "ZONE_CONFLICT",
            "INVALID_ZONE",
        ];
        let refusal = match self.ask("removeSource", &[zone], address)? {
            Err(refusal) if !ABSENT.iter().any(|name| refusal.is(name)) => refusal,
            _ => return Ok(()),
        };
        let source = IpNet::from(address);
        let what = format!("failed to remove the address {source} from {zone} zone");
        Err(refused(&refusal, &what))
    }

    /// The zone that `address` is in, if it is in one.
    ///
    /// # Errors
    /// When it refuses to tell.
    pub fn zone_of_source(&mut self, address: IpAddr) -> Result<Option<String>> {
        match self.ask("getZoneOfSource", &[], address)? {
            Ok(Value::Text(zone)) => Ok(Some(zone).filter(|zone| !zone.is_empty())),
            Ok(_) => Ok(None),
            Err(refusal) => Err(refused(&refusal, &format!("look up the zone of {address}"))),
        }
    }

    /// Whether `address` is in `zone`.
    ///
    /// # Errors
    /// When it refuses to tell.
    pub fn has_source(&mut self, zone: &str, address: IpAddr) -> Result<bool> {
        match self.ask("querySource", &[zone], address)? {
            Ok(value) => Ok(value == Value::Truth(true)),
            Err(refusal) => Err(refused(&refusal, &format!("look up zone {zone}"))),
        }
    }

    /// Calls `method` of the zones with the words `before` and the address.
    fn ask(&mut self, method: &str, before: &[&str], address: IpAddr) -> Result<bus::Answer> {
        let source = IpNet::from(address).to_string();
        let words: Vec<&str> = before.iter().copied().chain([source.as_str()]).collect();
        self.bus
            .call(ZONES, method, &words)
            .context("talk to firewalld")
    }
}

impl Refusal {
    /// Whether this is firewalld's error of that name: it stands in front of the text.
    fn is(&self, error: &str) -> bool {
        self.text.starts_with(error) || self.name.ends_with(error)
    }
}

fn refused(refusal: &Refusal, what: &str) -> anyhow::Error {
    let Refusal { name, text } = refusal;
    Failure::new(Kind::Refused, format!("{what}: {text}"))
        .because(format!("firewalld refuses: {name}"))
}
