//! The penalty of repetitions.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Number;

/// DRY ("don't repeat yourself"), under llama.cpp's names and with its defaults: a token that goes on with a repetition
/// loses the more, the longer it is.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct DryPenalty {
    /// Times `dry_base` to the power of the repetition's tokens beyond `dry_allowed_length`, this is taken off the logit
    /// of a token that goes on with it. 0, which it is where it is left out, takes nothing off.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) dry_multiplier: Option<Number>,
    /// What each further token of a repetition multiplies the penalty by. 1.75 where it is left out.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) dry_base: Option<Number>,
    /// Tokens of the shortest repetition that is penalised. 2 where it is left out.
    pub(crate) dry_allowed_length: Option<usize>,
    /// Repetitions are looked for in so many of the last tokens, the prompt's among them: 64 where it is left out, none
    /// for 0, all for -1.
    #[schemars(range(min = -1))]
    pub(crate) dry_penalty_last_n: Option<i64>,
    /// Texts that no repetition reaches across, 32 at most, of 64 bytes each: line feed, colon, double quote and
    /// asterisk where it is left out.
    #[schemars(length(min = 1, max = 32))]
    pub(crate) dry_sequence_breakers: Option<Vec<String>>,
}
