//! `static`: an IPAM plugin that hands out the addresses it is told (docs/compatibility.md#9.4).
//!
//! It keeps no record: whoever writes the configuration sees to it that nobody else has
//! the address.

mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::error::{Code, agree, coded};
use crate::cni::json::Problem;
use crate::cni::preview::Preview;
use crate::cni::result::CniResult;
use crate::cni::skel::{Call, Plugin};
use crate::plugins::sample::Sample;
use crate::undo::Undo;

use config::Settings;

/// The applet.
#[derive(Debug)]
pub struct Static;

impl Plugin for Static {
    fn add<'a>(&self, call: &'a Call, _undo: &mut Undo<'a>) -> Result<CniResult> {
        Settings::resolve(call).map(result)
    }

    fn del(&self, _call: &Call) -> Result<()> {
        // Nothing was recorded; a configuration that is wrong by now is no obstacle.
        Ok(())
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        let result = call
            .config
            .prev_result()?
            .context(coded(Code::Config, "Required prevResult missing"))?;
        agree(differences(&settings, &result))
    }

    fn status(&self, call: &Call) -> Result<()> {
        Settings::resolve(call).map(drop)
    }

    fn gc(&self, call: &Call, _collector: &mut Collector) -> Result<()> {
        call.config.valid_attachments().map(drop)
    }

    fn preview(&self, call: &Call, _preview: &mut Preview) -> Result<Option<CniResult>> {
        // There is nothing that it would make.
        Settings::resolve(call).map(result).map(Some)
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::problems(root, document)
    }
}

/// A sample of what ADD will answer; `None` where the runtime decides about it.
///
/// # Errors
/// As ADD.
pub fn sample(call: &Call) -> Result<Option<Sample>> {
    let result = result(Settings::resolve(call)?);
    let is_typical = true;
    let is_known = !result.ips.is_empty();
    Ok(is_known.then_some(Sample { result, is_typical }))
}

fn result(Settings { ips, routes, dns }: Settings) -> CniResult {
    CniResult {
        ips,
        routes,
        dns,
        ..CniResult::default()
    }
}

/// The addresses that `result` should have and has not, or with another gateway. Who
/// delegated may have filled in a gateway where none is configured.
fn differences(settings: &Settings, result: &CniResult) -> Vec<String> {
    let mut differences = Vec::new();
    for wanted in &settings.ips {
        let found = result.ips.iter().find(|ip| ip.address == wanted.address);
        let Some(found) = found else {
            differences.push(format!(
                "prevResult: expected address {}, found none such",
                wanted.address
            ));
            continue;
        };
        if let Some(gateway) = wanted.gateway
            && found.gateway != Some(gateway)
        {
            let found = found.gateway.map(|gateway| gateway.to_string());
            differences.push(format!(
                "prevResult: expected gateway {gateway} for address {}, found {}",
                wanted.address,
                found.as_deref().unwrap_or("none")
            ));
        }
    }
    differences
}
