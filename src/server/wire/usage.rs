//! What an answer took.

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::SequenceStats;
use crate::speculation::Proposer;

/// What an answer took.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompts.
    pub(crate) prompt_tokens: usize,
    /// Tokens generated.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
    /// More on the prompts' tokens.
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    /// More on the generated tokens.
    pub(crate) completion_tokens_details: CompletionTokensDetails,
    /// How speculation went.
    pub(crate) pleach: SpeculationUsage,
}

/// More on the tokens of prompts.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens that were in the cache already.
    pub(crate) cached_tokens: usize,
}

/// More on generated tokens.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct CompletionTokensDetails {
    /// Tokens of the model's reasoning, tags included.
    pub(crate) reasoning_tokens: u64,
    /// Tokens of the prediction that were drafted and accepted.
    pub(crate) accepted_prediction_tokens: u64,
    /// Tokens of the prediction that were drafted and not accepted.
    pub(crate) rejected_prediction_tokens: u64,
}

/// How speculation went, whoever drafted.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct SpeculationUsage {
    /// Rounds with draft tokens.
    pub(crate) drafts: u64,
    /// Draft tokens verified.
    pub(crate) draft_tokens: u64,
    /// Draft tokens accepted and sent.
    pub(crate) accepted_tokens: u64,
}

impl Usage {
    /// The usage of choices, `per_prompt` to a prompt, with `reasoning_tokens` in all.
    pub(crate) fn new(
        prompt_tokens: usize,
        choices: &[SequenceStats],
        per_prompt: usize,
        reasoning_tokens: u64,
    ) -> Self {
        let sum = |of: fn(&SequenceStats) -> u64| choices.iter().map(of).sum::<u64>();
        let completion_tokens = sum(|s| s.rounds.generated_tokens) as usize;
        let drafted = sum(|s| s.rounds.proposer(Proposer::Prediction).draft_tokens);
        let accepted = sum(|s| s.rounds.proposer(Proposer::Prediction).accepted_tokens);
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: choices.iter().step_by(per_prompt).map(|s| s.cached_tokens).sum(),
            },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens,
                accepted_prediction_tokens: accepted,
                rejected_prediction_tokens: drafted - accepted,
            },
            pleach: SpeculationUsage {
                drafts: sum(|s| s.rounds.drafts),
                draft_tokens: sum(|s| s.rounds.draft_tokens),
                accepted_tokens: sum(|s| s.rounds.accepted_tokens),
            },
        }
    }
}
