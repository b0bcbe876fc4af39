//! Patience with failures that pass by themselves.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How long a STATUS waits for what passes by itself: a daemon that restarts, a file that is
/// being replaced.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes `attempt` again and again, as long as it fails and [`PATIENCE`] lasts.
///
/// # Errors
/// Those of the last attempt.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(_) if start.elapsed() + PAUSE < PATIENCE => sleep(PAUSE),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_waited_for_and_what_stays_is_told() {
        let mut attempts = 0;
        let third = patiently(|| {
            attempts += 1;
            anyhow::ensure!(attempts == 3, "not yet");
            Ok(attempts)
        });
        assert_eq!(third.unwrap(), 3);
        let never: Result<()> = patiently(|| anyhow::bail!("it stays so"));
        assert_eq!(never.unwrap_err().to_string(), "it stays so");
    }
}
