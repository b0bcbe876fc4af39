//! What CHECK reports when packet filter rules are missing.

use anyhow::Result;

use crate::cni::error::{self, Code, detailed};
use crate::netfilter::Owner;

/// What CHECK makes of the rules that are `missing`, each a line of text.
///
/// # Errors
/// Names them all, and what brings them back. None missing is none.
pub fn refuse_missing(owner: &Owner, missing: &[String]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(detailed(
        Code::Internal,
        format!("packet filter rules of {owner} are missing"),
        format!("{}\n`cnibox restore` makes them again", missing.join("\n")),
    ))
}

/// What CHECK comes to where an attachment has rules: those `missing`, and what else
/// differs.
///
/// # Errors
/// Everything that is not as it should be.
pub fn agree(mut differences: Vec<String>, owner: &Owner, missing: Vec<String>) -> Result<()> {
    if differences.is_empty() {
        return refuse_missing(owner, &missing);
    }
    differences.extend(missing.into_iter().map(|rule| format!("missing: {rule}")));
    error::agree(differences)
}
