//! How tokens are drawn.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Number;

/// How tokens are drawn: what every endpoint that generates text takes.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Drawing {
    /// Divisor of the logits; 0 takes the most likely token. Where it is left out, the model's own value counts, or 1.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) temperature: Option<Number>,
    /// Keep the smallest set of most likely tokens with at least this much probability.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<Number>,
    /// Keep the k most likely tokens; all where k is not positive.
    pub(crate) top_k: Option<i64>,
    /// Keep tokens at least this fraction as likely as the most likely one.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) min_p: Option<Number>,
    /// Keep tokens whose logits lie at most so many standard deviations below the largest; all where it is not
    /// positive.
    #[schemars(range(max = 100))]
    pub(crate) top_n_sigma: Option<Number>,
    /// Keep the smallest set with at least this much probability of the tokens whose information is nearest to the
    /// distribution's entropy (locally typical sampling).
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub(crate) typical_p: Option<Number>,
    /// Chance, at each token, that the most likely ones are left out (XTC). Of no effect at temperature 0.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) xtc_probability: Option<Number>,
    /// Least probability of the tokens that are left out; the least likely of them stays. 0.1 where it is left out.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) xtc_threshold: Option<Number>,
    /// The same seed gives the same output, whatever else runs and however much is drafted.
    pub(crate) seed: Option<i64>,
    /// Divides positive and multiplies negative logits of every token so far.
    #[schemars(range(min = 0.01, max = 100))]
    pub(crate) repetition_penalty: Option<Number>,
    /// Taken off the logit of every generated token.
    #[schemars(range(min = -2, max = 2))]
    pub(crate) presence_penalty: Option<Number>,
    /// Taken off the logit of a generated token once per occurrence.
    #[schemars(range(min = -2, max = 2))]
    pub(crate) frequency_penalty: Option<Number>,
    /// Added to the logits of single tokens, by token id: -100 to 100. Ids are written plainly, 1,024 at most.
    #[schemars(extend("maxProperties" = 1024))]
    pub(crate) logit_bias: Option<BTreeMap<String, Number>>,
    /// Tokens before which nothing ends the answer: no end-of-sequence token, stop token or stop string. 0 where it is
    /// left out. Where a grammar can only end, it ends.
    pub(crate) min_tokens: Option<usize>,
    /// The only tokens that may be generated, 4,096 at most. Where a grammar admits none of them, it is followed.
    #[schemars(length(min = 1, max = 4096))]
    pub(crate) allowed_token_ids: Option<Vec<u32>>,
    /// Texts that are not generated, 256 at most, of 1,024 bytes each and 16,384 in all: the last token of each, as it
    /// is encoded with and without a space before it, does not follow the others.
    #[schemars(length(max = 256))]
    pub(crate) bad_words: Option<Vec<String>>,
}
