//! Numbers, and quantiles of them.

use std::time::Duration;

/// The smallest value that this share of `sorted` does not exceed.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to last")]
    let at = (number(last) * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

pub(crate) fn sorted(mut figures: Vec<f64>) -> Vec<f64> {
    figures.sort_by(f64::total_cmp);
    figures
}

pub(crate) fn median(figures: Vec<f64>) -> f64 {
    quantile(&sorted(figures), 0.5)
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
pub(crate) fn number(count: usize) -> f64 {
    count as f64
}
