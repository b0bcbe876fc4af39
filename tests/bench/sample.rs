//! Figures that were measured several times.

use std::time::Duration;

use serde_json::{Value, json};

/// Milliseconds, or another unit that the row names, of each time.
#[derive(Debug, Clone, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Takes in another figure.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
        self.0.sort_by(f64::total_cmp);
    }

    /// Takes in another duration, in milliseconds.
    pub fn push_time(&mut self, time: Duration) {
        self.push(milliseconds(time));
    }

    /// The figure below which a `share` of them is.
    fn quantile(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index into a few dozen figures"
        )]
        let index = (self.0.len().saturating_sub(1) as f64 * share).round() as usize;
        self.0.get(index).copied().unwrap_or(f64::NAN)
    }

    /// What is compared.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// As the report has it.
    pub fn to_json(&self) -> Value {
        json!({
            "median": self.median(),
            "quartiles": [self.quantile(0.25), self.quantile(0.75)],
            "times": self.0.len(),
        })
    }
}

/// `median (quartile–quartile)`.
impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [low, median, high] = [0.25, 0.5, 0.75].map(|share| self.quantile(share));
        write!(f, "{median:.1} ({low:.1}–{high:.1})")
    }
}

/// A duration in milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
