//! A stack of undo steps.
//!
//! Whoever makes something that must not outlive a failure pushes how to remove it.
//! [`Undo::commit`] keeps everything; dropping the stack runs the steps backwards.

use anyhow::Result;

use crate::log;

/// Steps that run in reverse order unless committed. Their own errors go to stderr:
/// they never replace the error that brought us here.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<Step<'a>>,
}

struct Step<'a> {
    what: String,
    run: Box<dyn FnOnce() -> Result<()> + 'a>,
}

impl<'a> Undo<'a> {
    /// Adds a step; `what` reads after "undo: ", as in "undo: delete link veth0".
    pub fn push(&mut self, what: impl Into<String>, run: impl FnOnce() -> Result<()> + 'a) {
        self.steps.push(Step {
            what: what.into(),
            run: Box::new(run),
        });
    }

    /// Whether there is nothing to undo.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Keeps what was made.
    pub fn commit(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            if let Err(error) = (step.run)() {
                log::warn(&format!("undo: {}: {error:#}", step.what));
            }
        }
    }
}

impl std::fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.steps.iter().map(|step| &step.what))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn drop_runs_backwards_and_past_errors() {
        let seen = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        undo.push("one", || {
            seen.borrow_mut().push(1);
            Ok(())
        });
        undo.push("two", || {
            seen.borrow_mut().push(2);
            anyhow::bail!("it does not go away")
        });
        drop(undo);
        assert_eq!(*seen.borrow(), [2, 1]);
    }

    #[test]
    fn commit_keeps() {
        let seen = RefCell::new(0);
        let mut undo = Undo::default();
        undo.push("one", || {
            *seen.borrow_mut() += 1;
            Ok(())
        });
        undo.commit();
        assert_eq!(*seen.borrow(), 0);
    }
}
