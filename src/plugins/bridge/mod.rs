use crate::cni::json::Problem;
use crate::cni::result::CniResult;
use crate::cni::skel::{Call, Plugin};
use crate::undo::Undo;
use anyhow::{Result, bail};
use serde_json::Value;
pub struct Bridge;
impl Plugin for Bridge {
    fn add<'a>(&self, _call: &'a Call, _undo: &mut Undo<'a>) -> Result<CniResult> {
        bail!("not yet")
    }
    fn del(&self, _call: &Call) -> Result<()> {
        bail!("not yet")
    }
    fn check(&self, _call: &Call) -> Result<()> {
        bail!("not yet")
    }
    fn status(&self, _call: &Call) -> Result<()> {
        bail!("not yet")
    }
    fn gc(&self, _call: &Call) -> Result<()> {
        bail!("not yet")
    }
    fn validate(&self, _root: &str, _document: &Value) -> Vec<Problem> {
        Vec::new()
    }
}
