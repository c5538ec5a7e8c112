//! What `/admin/draft` takes and answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::{Comparison, DraftScore};

/// Another draft.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct DraftChange {
    /// Its source, as `--draft` takes it.
    pub(crate) draft: String,
    /// Tokens of live traffic that it is compared on; 4096 where it is left out.
    #[schemars(range(min = 1))]
    pub(crate) tokens: Option<u64>,
}

/// Which draft serves.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DraftStatus {
    /// Its name; null without one.
    pub(crate) draft: Option<String>,
    /// The comparison that goes on, or the last one.
    pub(crate) comparison: Option<DraftComparison>,
}

/// How a new draft fares beside the one that serves.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DraftComparison {
    /// The new draft's name.
    draft: String,
    /// `comparing`, `switched` (it serves), `refused` (it promises no more), `failed` or `stopped`.
    state: &'static str,
    /// Tokens that both were held against so far.
    tokens: u64,
    /// Tokens that it takes.
    wanted: u64,
    /// The draft that served when it began; null without one.
    current: Option<DraftFigures>,
    /// The new draft.
    candidate: DraftFigures,
}

/// How one draft fares.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DraftFigures {
    /// Share of the tokens that it would have drafted: acceptance at temperature 0.
    acceptance: f64,
    /// Seconds of a draft step over those of a target pass of one row.
    step_cost: f64,
    /// Tokens per second over those without speculation that this promises.
    speedup: f64,
}

impl From<&Comparison> for DraftComparison {
    fn from(comparison: &Comparison) -> Self {
        let figures = |score: DraftScore| DraftFigures {
            acceptance: score.accepted_tokens as f64 / comparison.tokens.max(1) as f64,
            step_cost: score.step_cost,
            speedup: score.speedup,
        };
        Self {
            draft: comparison.draft.clone(),
            state: comparison.outcome.map_or("comparing", |outcome| outcome.name()),
            tokens: comparison.tokens,
            wanted: comparison.wanted,
            current: comparison.current.map(figures),
            candidate: figures(comparison.candidate),
        }
    }
}
