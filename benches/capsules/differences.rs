//! What can be said of a difference.

use crate::figures::{median, number, quantile, sorted};

/// The median, and within which 95 % of the medians of samples drawn from `figures` lie.
pub(crate) fn bootstrap(figures: &[f64]) -> (f64, [f64; 2]) {
    const DRAWS: usize = 1000;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut medians = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        let draw = |_| {
            // xorshift64: the same draws in every run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let length = u64::try_from(figures.len().max(1)).unwrap_or(1);
            let at = usize::try_from(state % length).unwrap_or(0);
            figures.get(at).copied().unwrap_or(f64::NAN)
        };
        medians.push(median((0..figures.len()).map(draw).collect()));
    }
    let medians = sorted(medians);
    (median(figures.to_vec()), [quantile(&medians, 0.025), quantile(&medians, 0.975)])
}

/// How often one of `slow` is more than one of `fast`, of all pairs; 0.5: nothing tells them apart.
pub(crate) fn exceeds(slow: &[f64], fast: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> = slow.iter().map(|&figure| (figure, true)).collect();
    all.extend(fast.iter().map(|&figure| (figure, false)));
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut below, mut wins) = (0.0, 0.0);
    for (_, is_slow) in all {
        if is_slow {
            wins += below;
        } else {
            below += 1.0;
        }
    }
    wins / (number(slow.len()) * number(fast.len()))
}
