//! What a GC does with the things it finds stale (specification section 2, "GC").
//!
//! A plugin says of each thing what it is and how it goes. Whether it goes, or is only
//! told of, is decided here: so a dry run makes the very search that the real one acts on.

use std::net::IpAddr;

use anyhow::Result;

use super::error::ErrorObject;
use super::invocation::Attachment;
use crate::log;

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Stale things are removed, each with a line on stderr.
    Real,
    /// They are only told of.
    Dry,
}

/// An address that belonged to an attachment which is no longer valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    /// Whose it was.
    pub attachment: Attachment,
    /// Nobody's by now, unless the run is dry.
    pub address: IpAddr,
}

/// One GC on its way through the plugins. An error stops nothing.
#[derive(Debug)]
pub struct Collector {
    run: Run,
    freed: Vec<Freed>,
    lines: Vec<String>,
    errors: Vec<anyhow::Error>,
}

impl Collector {
    /// One that has found nothing yet.
    pub fn new(run: Run) -> Self {
        Self {
            run,
            freed: Vec::new(),
            lines: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Whether anything is changed.
    pub fn run(&self) -> Run {
        self.run
    }

    /// One stale thing: `what` reads after "removed".
    pub fn remove(&mut self, what: &str, remove: impl FnOnce() -> Result<()>) {
        self.remove_together(|| Ok(vec![what.to_owned()]), remove);
    }

    /// Stale things that go in one step: those that `look` finds, if any. One that fails is
    /// told of and followed by `remove` nonetheless.
    pub fn remove_together(
        &mut self,
        look: impl FnOnce() -> Result<Vec<String>>,
        remove: impl FnOnce() -> Result<()>,
    ) {
        let stale = match look() {
            Ok(stale) if stale.is_empty() => return,
            Ok(stale) => stale,
            // What can be found in spite of it goes all the same.
            Err(error) => {
                self.errors.push(error);
                Vec::new()
            }
        };
        if self.run == Run::Dry {
            let lines = stale.iter().map(|what| format!("would remove {what}"));
            return self.lines.extend(lines);
        }
        match remove() {
            Ok(()) => {
                for what in stale {
                    log::warn(&format!("GC removed {what}"));
                }
            }
            // Told already by the look.
            Err(_) if stale.is_empty() => {}
            Err(error) => {
                let context = format!("remove {}", stale.join(", "));
                self.errors.push(error.context(context));
            }
        }
    }

    /// What IPAM has found: who is dead tells of things that do not say whose they are.
    pub fn free(&mut self, freed: Freed) {
        self.freed.push(freed);
    }

    /// What IPAM has found so far.
    pub fn freed(&self) -> &[Freed] {
        &self.freed
    }

    /// Something else that the reader of a dry run should know.
    pub fn note(&mut self, line: String) {
        self.lines.push(line);
    }

    /// Remembers what went wrong, if something did.
    pub fn attempt(&mut self, done: Result<()>) {
        self.errors.extend(done.err());
    }

    /// What a dry run has to say, a line for each thing, and what went wrong.
    pub fn into_parts(self) -> (Vec<String>, Vec<anyhow::Error>) {
        (self.lines, self.errors)
    }

    /// What a real run comes to.
    ///
    /// # Errors
    /// The only one as it is; of several all in one, with the code of the first.
    pub fn finish(self) -> Result<()> {
        let mut errors = self.errors;
        if errors.len() < 2 {
            return errors.pop().map_or(Ok(()), Err);
        }
        let code = errors
            .first()
            .map_or(0, |first| ErrorObject::from_error(first).code);
        let texts: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
        Err(ErrorObject {
            code,
            msg: format!(
                "GC met {} errors; what it could remove is removed",
                texts.len()
            ),
            details: texts.join("; "),
            ..ErrorObject::default()
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;
    use crate::cni::error::{Code, detailed};

    #[test]
    fn a_dry_run_removes_nothing_and_a_real_one_goes_on() {
        let mut removed = Vec::new();
        for run in [Run::Dry, Run::Real] {
            let mut collector = Collector::new(run);
            for what in ["a", "b", "c"] {
                collector.remove(what, || {
                    removed.push(what);
                    ensure!(what != "b", "busy");
                    Ok(())
                });
            }
            collector.remove_together(|| Ok(Vec::new()), || bail!("nothing to remove"));
            let (lines, errors) = collector.into_parts();
            match run {
                Run::Dry => assert_eq!(
                    lines,
                    ["would remove a", "would remove b", "would remove c"]
                ),
                Run::Real => assert_eq!(format!("{:#}", errors[0]), "remove b: busy"),
            }
            assert_eq!(errors.len(), usize::from(run == Run::Real));
        }
        assert_eq!(removed, ["a", "b", "c"]);
    }

    #[test]
    fn what_cannot_be_listed_is_removed_nonetheless() {
        for (run, expected) in [(Run::Dry, false), (Run::Real, true)] {
            let mut collector = Collector::new(run);
            let mut removed = false;
            collector.remove_together(
                || anyhow::bail!("half of it cannot be read"),
                || {
                    removed = true;
                    Ok(())
                },
            );
            assert_eq!(removed, expected);
            assert_eq!(collector.into_parts().1.len(), 1);
        }
    }

    #[test]
    fn every_error_is_told() {
        let mut collector = Collector::new(Run::Real);
        collector.attempt(Err(detailed(Code::Io, "first", "why")));
        collector.attempt(Ok(()));
        collector.remove("x", || bail!("stuck"));
        let error = collector.finish().unwrap_err();
        let object = ErrorObject::from_error(&error);
        assert_eq!(
            (object.code, object.msg.as_str()),
            (5, "GC met 2 errors; what it could remove is removed")
        );
        assert_eq!(object.details, "first: why; remove x: stuck");
        let mut one = Collector::new(Run::Real);
        one.attempt(Err(detailed(Code::Io, "first", "why")));
        assert_eq!(
            ErrorObject::from_error(&one.finish().unwrap_err()).msg,
            "first"
        );
        assert!(Collector::new(Run::Real).finish().is_ok());
    }
}
