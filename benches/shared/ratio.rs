//! What one case costs in terms of another.

use serde_json::{Value, json};

use crate::figures::{quantile, sorted};

/// Of all rounds together, and of each. A machine that changes its speed within a round makes each
/// round's ratio a toss; in the sums that evens out.
pub(crate) struct Ratio {
    pub(crate) all: f64,
    pub(crate) quartiles: [f64; 3],
}

impl Ratio {
    /// Of what something cost in each round and what it is compared with; of no rounds there is none.
    pub(crate) fn of(rounds: &[(f64, f64)]) -> Option<Self> {
        let (costs, bases): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
        let each = sorted(rounds.iter().map(|(cost, base)| cost / base).collect());
        (!rounds.is_empty()).then(|| Self {
            all: costs.iter().sum::<f64>() / bases.iter().sum::<f64>(),
            quartiles: [0.25, 0.5, 0.75].map(|share| quantile(&each, share)),
        })
    }

    /// Under `key`, what it is of.
    pub(crate) fn json(&self, key: &str, name: &str) -> Value {
        json!({ key: name, "ratio": self.all, "quartiles_of_rounds": self.quartiles })
    }
}
