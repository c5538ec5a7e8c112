//! Fields of requests. Each struct is a group of fields that one or more endpoints take; null is as good
//! as absent for all of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Content, False, Message, True};

/// Which model answers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskedModel {
    /// Name of a served model, or of an adapter; where it is left out, the main model answers.
    pub(crate) model: Option<String>,
}

/// How text is generated, beside [`Drawing`]: what chat and plain completions have in common.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Sampling {
    /// Choices per prompt.
    #[schemars(range(min = 1, max = 128))]
    pub(crate) n: Option<usize>,
    /// Texts that end the answer and are not part of it; 16 at most, of 1,024 bytes each and 4,096 in all.
    pub(crate) stop: Option<Stop>,
    /// Tokens that end the answer; 256 at most.
    #[schemars(length(max = 256))]
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    /// Whether the text ends with the stop string, or the text of the stop token, that ended it.
    pub(crate) include_stop_str_in_output: Option<bool>,
    /// Whether the model's end-of-sequence tokens are ordinary tokens.
    pub(crate) ignore_eos: Option<bool>,
    /// Report the log-probability of each token of the prompt, with as many most likely tokens beside it. Not with
    /// `stream`; 1,048,576 log-probabilities of prompts at most in an answer.
    #[schemars(range(max = 20))]
    pub(crate) prompt_logprobs: Option<usize>,
    /// Send the answer as server-sent events while it is generated.
    pub(crate) stream: Option<bool>,
    /// Needs `stream`.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Draft tokens per round at most; 0 for no speculation.
    pub(crate) num_speculative_tokens: Option<usize>,
    /// Of the requests that wait, those with a lower number run earlier. 0 where it is left out. With a
    /// file of keys, only for those that it lets set it.
    pub(crate) priority: Option<i64>,
    /// Requests with another one, or none, find nothing of this one in the prefix cache, nor this one of theirs; not
    /// empty, 1,024 bytes at most. Requests with different API keys never do.
    #[schemars(length(min = 1, max = 1024))]
    pub(crate) cache_salt: Option<String>,
    /// Say for each token whether it was drafted.
    pub(crate) return_token_sources: Option<bool>,
    /// Name the tokens of `logprobs` by their ids, as in `token_id:7`, since several may have the same text.
    pub(crate) return_tokens_as_token_ids: Option<bool>,
    /// Only `false`: the answer must not be recorded, also where the server keeps a sample of what it answers
    /// to train its draft on (`--record-traffic`).
    pub(crate) store: Option<False>,
    /// Identifies the end user; ignored.
    #[expect(dead_code, reason = "of no effect")]
    user: Option<String>,
}

/// Fields that routers send with every request, at the values that ask for nothing.
#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "each has one value")]
pub(crate) struct RouterDefaults {
    /// Only `false`.
    no_stop_trim: Option<False>,
    /// Only `false`.
    return_hidden_states: Option<False>,
    /// Only `true`.
    skip_special_tokens: Option<True>,
}

/// What becomes of a model's reasoning in the answer of a chat; plain completions are as the model writes them.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct ReasoningOptions {
    /// Whether the reasoning is part of the answer. True where it is left out.
    pub(crate) include_reasoning: Option<bool>,
    /// Whether the reasoning stands apart, in `reasoning_content`; else it stands in the text, tags and all. True
    /// where it is left out.
    pub(crate) separate_reasoning: Option<bool>,
    /// Whether the reasoning is streamed as it comes; else it is sent as a whole. True where it is left out.
    pub(crate) stream_reasoning: Option<bool>,
    /// `none` is another word for `separate_reasoning: false`.
    pub(crate) reasoning_format: Option<ReasoningFormat>,
}

/// Where reasoning stands.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReasoningFormat {
    /// Apart.
    Auto,
    /// Apart.
    Deepseek,
    /// In the text.
    None,
}

/// Texts that end an answer.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub(crate) enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Stop {
    pub(crate) fn into_list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// How an answer is streamed.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// End with a chunk that has `usage`.
    pub(crate) include_usage: Option<bool>,
    /// Only `false`: chunks are not padded.
    #[expect(dead_code, reason = "has one value")]
    include_obfuscation: Option<False>,
}

/// A conversation to be answered.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Conversation {
    /// The conversation so far; 4,096 messages at most.
    #[schemars(length(min = 1, max = 4096))]
    pub(crate) messages: Vec<Message>,
    /// Go on with the last message instead of beginning a new one.
    pub(crate) continue_final_message: Option<bool>,
    /// Whether the prompt ends where the assistant is to speak. True where it is left out.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Variables for the model's chat template, such as `{"enable_thinking": false}`; 64 at most. Those that it does not
    /// know have no effect.
    #[schemars(extend("maxProperties" = 64))]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// How long the model reasons before it answers, where its chat template leaves a choice: it gets `enable_thinking`
    /// and `thinking` (false for `none`), and `reasoning_effort`. `chat_template_kwargs` come before these.
    pub(crate) reasoning_effort: Option<ReasoningEffort>,
}

/// What a chat completion takes besides.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Chat {
    /// Tokens to generate at most.
    #[schemars(range(min = 1))]
    pub(crate) max_completion_tokens: Option<usize>,
    /// The older name of `max_completion_tokens`.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: Option<usize>,
    /// Report the log-probability of each token.
    pub(crate) logprobs: Option<bool>,
    /// Report as many most likely tokens beside it; needs `logprobs`.
    #[schemars(range(max = 20))]
    pub(crate) top_logprobs: Option<usize>,
    /// What the answer will largely be: drafted from while the answer follows it.
    pub(crate) prediction: Option<Prediction>,
    /// Only `["text"]`.
    #[expect(dead_code, reason = "has one value")]
    modalities: Option<Vec<Modality>>,
    /// Accepted and ignored.
    #[expect(dead_code, reason = "of no effect")]
    metadata: Option<BTreeMap<String, String>>,
    /// Identifies the end user; ignored.
    #[expect(dead_code, reason = "of no effect")]
    safety_identifier: Option<String>,
    /// Ignored: requests of an API key share one prefix cache.
    #[expect(dead_code, reason = "of no effect")]
    prompt_cache_key: Option<String>,
    /// Ignored: there is one tier.
    #[expect(dead_code, reason = "of no effect")]
    service_tier: Option<ServiceTier>,
    /// Only `medium`, which asks for nothing.
    #[expect(dead_code, reason = "has one value")]
    verbosity: Option<Verbosity>,
}

/// What an answer will largely be.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Prediction {
    /// Text that much of the answer will repeat.
    Content {
        /// The text.
        content: Content,
    },
}

/// What an answer consists of.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Modality {
    /// Text.
    Text,
}

/// How a request is served.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceTier {
    /// As every request is served.
    Auto,
    /// As every request is served.
    Default,
}

/// How long the model reasons before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReasoningEffort {
    /// Not at all.
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// How many words the model makes.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verbosity {
    /// As many as it does.
    Medium,
}

/// What a plain completion takes besides.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Completion {
    /// A text, a list of texts, a list of token ids, or a list of such lists.
    pub(crate) prompt: PromptInput,
    /// Tokens to generate at most; 16 where it is left out. 0 needs `echo`.
    pub(crate) max_tokens: Option<usize>,
    /// Report the log-probability of each token, and as many most likely tokens beside it.
    #[schemars(range(max = 20))]
    pub(crate) logprobs: Option<usize>,
    /// Generate so many choices and keep the `n` with the highest log-probability per token.
    #[schemars(range(min = 1, max = 128))]
    pub(crate) best_of: Option<usize>,
    /// Begin the text with the prompt, and the log-probabilities with those of its tokens.
    pub(crate) echo: Option<bool>,
}

impl PromptInput {
    /// The prompts one by one.
    pub(crate) fn into_list(self) -> Vec<OnePrompt> {
        match self {
            Self::Text(text) => vec![OnePrompt::Text(text)],
            Self::Ids(ids) => vec![OnePrompt::Ids(ids)],
            Self::Many(prompts) => prompts,
        }
    }
}

/// One or more prompts, as text or as token ids.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "must be a string, a list of strings, or one or more lists of token ids"
)]
pub(crate) enum PromptInput {
    /// A text.
    Text(String),
    /// Token ids.
    Ids(#[schemars(length(min = 1))] Vec<u32>),
    /// Texts or lists of token ids.
    Many(#[schemars(length(min = 1))] Vec<OnePrompt>),
}

/// One of several prompts.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of token ids")]
pub(crate) enum OnePrompt {
    /// A text.
    Text(String),
    /// Token ids.
    Ids(#[schemars(length(min = 1))] Vec<u32>),
}
