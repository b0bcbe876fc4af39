//! `cnibox` itself.
use std::ffi::OsString;
use std::process::ExitCode;
pub const NAME: &str = "cnibox";
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::FAILURE
}
pub fn unknown_applet(_n: &str) -> ExitCode {
    ExitCode::FAILURE
}
