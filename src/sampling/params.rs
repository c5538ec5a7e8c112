//! What a request asks of sampling.

use std::sync::Arc;

use super::{Draws, Dry, ParamError, Purpose, Restrictions};

/// How a token is drawn. Applied in this order: repetition penalty, presence and frequency
/// penalties, DRY, logit bias, restrictions, temperature, top-n-sigma, top-k, typical-p, top-p, min-p, XTC.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divisor of the logits; 0 takes the most likely token (the lowest id among equals).
    pub temperature: f32,
    /// Keep the k most likely tokens.
    pub top_k: Option<u32>,
    /// Keep the smallest set of most likely tokens with at least this much probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Keep tokens whose logits lie at most so many standard deviations below the largest; 0 keeps all.
    pub top_n_sigma: f32,
    /// Keep the smallest set of the most typical tokens with at least this much probability; 1 keeps all.
    pub typical_p: f32,
    /// Chance, at each position, that the most likely tokens are left out (XTC); 0 is off.
    pub xtc_probability: f32,
    /// Least probability of the tokens that XTC leaves out; the least likely of them stays.
    pub xtc_threshold: f32,
    /// Key of every draw: the same seed gives the same tokens, whatever else runs and however much
    /// is drafted (see [`Draws::coupled`](super::Draws::coupled)). `None` takes one at random.
    pub seed: Option<u64>,
    /// Divides positive and multiplies negative logits of every token in the prompt or the
    /// generated text (as `transformers` does); 1 is off.
    pub repetition_penalty: f32,
    /// Taken off the logit of every generated token (as OpenAI does); 0 is off.
    pub presence_penalty: f32,
    /// Taken off the logit of a generated token once per occurrence (as OpenAI does); 0 is off.
    pub frequency_penalty: f32,
    /// Taken off the logits of tokens that go on with a repetition.
    pub dry: Option<Dry>,
    /// Added to the logits of single tokens.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Tokens that may not come.
    pub restrictions: Restrictions,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            top_n_sigma: 0.0,
            typical_p: 1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            seed: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            logit_bias: Arc::default(),
            restrictions: Restrictions::default(),
        }
    }
}

impl SamplingParams {
    /// The most likely token at every position.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether anything looks at the tokens so far.
    #[must_use]
    pub fn uses_history(&self) -> bool {
        self.penalises() || self.dry().is_some() || self.restrictions.uses_history()
    }

    /// Whether anything is asked for beyond temperature, top-k, top-p, min-p, penalties and bias.
    #[must_use]
    pub fn is_uncommon(&self) -> bool {
        self.restrictions.any()
            || self.dry().is_some()
            || self.top_n_sigma > 0.0
            || self.typical_p < 1.0
            || self.xtc_probability > 0.0
    }

    /// Whether the most likely tokens are left out at `position`: a coin that depends on the sequence's key and the
    /// position alone, so that it falls alike with a draft and without.
    #[must_use]
    pub fn excludes_top(&self, draws: &Draws, position: usize) -> bool {
        self.xtc_probability > 0.0
            && draws.uniform(position, Purpose::Exclude) < f64::from(self.xtc_probability)
    }

    /// How repetitions are penalised, where they are.
    pub(super) fn dry(&self) -> Option<&Dry> {
        self.dry.as_ref().filter(|dry| dry.penalises())
    }

    /// Whether tokens are cut off, wherever they stand.
    pub(super) fn truncates(&self) -> bool {
        self.top_k.is_some()
            || self.top_p < 1.0
            || self.min_p > 0.0
            || self.typical_p < 1.0
            || self.top_n_sigma > 0.0
    }

    /// Whether there are penalties.
    pub(super) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// The first parameter out of range, by name.
    pub fn validate(&self, vocab_size: usize) -> Result<(), ParamError> {
        let check = |ok: bool, field, reason: &str| {
            if ok { Ok(()) } else { Err(ParamError { field, reason: reason.to_owned() }) }
        };
        // Written so that NaN fails every range.
        check((0.0..=100.0).contains(&self.temperature), "temperature", "must be in [0, 100]")?;
        check(self.top_k != Some(0), "top_k", "must be at least 1")?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "must be in (0, 1]")?;
        let share = 0.0..=1.0;
        check(share.contains(&self.min_p), "min_p", "must be in [0, 1]")?;
        check((0.0..=100.0).contains(&self.top_n_sigma), "top_n_sigma", "must be at most 100")?;
        let typical = self.typical_p > 0.0 && self.typical_p <= 1.0;
        check(typical, "typical_p", "must be in (0, 1]")?;
        check(share.contains(&self.xtc_probability), "xtc_probability", "must be in [0, 1]")?;
        check(share.contains(&self.xtc_threshold), "xtc_threshold", "must be in [0, 1]")?;
        self.dry.as_ref().map_or(Ok(()), Dry::validate)?;
        let repetition = self.repetition_penalty;
        check(
            (0.01..=100.0).contains(&repetition),
            "repetition_penalty",
            "must be in [0.01, 100]",
        )?;
        let offset = -2.0..=2.0;
        check(offset.contains(&self.presence_penalty), "presence_penalty", "must be in [-2, 2]")?;
        check(offset.contains(&self.frequency_penalty), "frequency_penalty", "must be in [-2, 2]")?;
        for &(id, bias) in &*self.logit_bias {
            check(
                (id as usize) < vocab_size,
                "logit_bias",
                "names a token outside the vocabulary",
            )?;
            check((-100.0..=100.0).contains(&bias), "logit_bias", "must be in [-100, 100]")?;
        }
        let known =
            |ids: &[u32]| !ids.is_empty() && ids.iter().all(|&id| (id as usize) < vocab_size);
        let Restrictions { allowed, bad_words, .. } = &self.restrictions;
        check(
            allowed.as_ref().is_none_or(|allowed| known(allowed)),
            "allowed_token_ids",
            "must be token ids of the vocabulary, at least one",
        )?;
        let words = bad_words.iter().all(|word| known(word));
        check(words, "bad_words", "must be texts of at least one token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_name_the_field() {
        assert_eq!(SamplingParams::default().validate(10), Ok(()));
        assert_eq!(SamplingParams::greedy().validate(10), Ok(()));
        type Change = fn(&mut SamplingParams);
        fn dry(change: fn(&mut Dry)) -> Option<Dry> {
            let mut dry = Dry::default();
            change(&mut dry);
            Some(dry)
        }
        let wrong: [(&str, Change); 21] = [
            ("temperature", |p| p.temperature = -0.1),
            ("temperature", |p| p.temperature = f32::NAN),
            ("top_k", |p| p.top_k = Some(0)),
            ("top_p", |p| p.top_p = 0.0),
            ("min_p", |p| p.min_p = 1.5),
            ("top_n_sigma", |p| p.top_n_sigma = -1.0),
            ("typical_p", |p| p.typical_p = 0.0),
            ("typical_p", |p| p.typical_p = f32::NAN),
            ("xtc_probability", |p| p.xtc_probability = 1.5),
            ("xtc_threshold", |p| p.xtc_threshold = -0.1),
            ("dry_multiplier", |p| p.dry = dry(|dry| dry.multiplier = -0.5)),
            ("dry_multiplier", |p| p.dry = dry(|dry| dry.multiplier = f32::INFINITY)),
            ("dry_base", |p| p.dry = dry(|dry| dry.base = 0.9)),
            ("dry_base", |p| p.dry = dry(|dry| dry.base = f32::NAN)),
            ("repetition_penalty", |p| p.repetition_penalty = 1e-40),
            ("frequency_penalty", |p| p.frequency_penalty = 2.5),
            ("logit_bias", |p| p.logit_bias = [(10, 1.0)].into()),
            ("allowed_token_ids", |p| p.restrictions.allowed = Some([].into())),
            ("allowed_token_ids", |p| p.restrictions.allowed = Some([9, 10].into())),
            ("bad_words", |p| p.restrictions.bad_words = [vec![]].into()),
            ("bad_words", |p| p.restrictions.bad_words = [vec![1], vec![10]].into()),
        ];
        for (field, change) in wrong {
            let mut params = SamplingParams::default();
            change(&mut params);
            assert_eq!(params.validate(10).map_err(|e| e.field), Err(field));
        }
    }
}
