//! How tokens are drawn where a request does not say.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ParamError, SamplingParams};

/// Sampling parameters of a model, by their names in `generation_config.json`, which are those of requests.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingDefaults {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    top_n_sigma: Option<f32>,
    typical_p: Option<f32>,
    xtc_probability: Option<f32>,
    xtc_threshold: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// The defaults of a model, as its `generation_config.json` has them; other fields are not read.
    ///
    /// # Errors
    /// [`ParamError`] for a value out of its range.
    pub fn of_model(generation: &Map<String, Value>) -> Result<Self, ParamError> {
        let number = |field: &str| generation.get(field).and_then(Value::as_f64).map(|n| n as f32);
        let defaults = Self {
            temperature: number("temperature"),
            top_p: number("top_p"),
            top_k: generation.get("top_k").and_then(Value::as_i64),
            min_p: number("min_p"),
            top_n_sigma: None,
            typical_p: number("typical_p"),
            xtc_probability: number("xtc_probability"),
            xtc_threshold: number("xtc_threshold"),
            repetition_penalty: number("repetition_penalty"),
            presence_penalty: None,
            frequency_penalty: None,
        };
        defaults.params().validate(0)?;
        Ok(defaults)
    }

    /// Reads a JSON object of parameters.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(json: &str) -> Result<Self, String> {
        let fields: Map<String, Value> =
            serde_json::from_str(json).map_err(|error| format!("is no JSON object: {error}"))?;
        let defaults: Self =
            serde_json::from_value(fields.into()).map_err(|error| error.to_string())?;
        defaults.params().validate(0).map_err(|error| error.to_string())?;
        Ok(defaults)
    }

    /// These, and those of `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            temperature: self.temperature.or(other.temperature),
            top_p: self.top_p.or(other.top_p),
            top_k: self.top_k.or(other.top_k),
            min_p: self.min_p.or(other.min_p),
            top_n_sigma: self.top_n_sigma.or(other.top_n_sigma),
            typical_p: self.typical_p.or(other.typical_p),
            xtc_probability: self.xtc_probability.or(other.xtc_probability),
            xtc_threshold: self.xtc_threshold.or(other.xtc_threshold),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            presence_penalty: self.presence_penalty.or(other.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(other.frequency_penalty),
        }
    }

    /// The parameters of a request that sets none.
    #[must_use]
    pub fn params(&self) -> SamplingParams {
        let usual = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.and_then(top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            top_n_sigma: self.top_n_sigma.map_or(usual.top_n_sigma, top_n_sigma),
            typical_p: self.typical_p.unwrap_or(usual.typical_p),
            xtc_probability: self.xtc_probability.unwrap_or(usual.xtc_probability),
            xtc_threshold: self.xtc_threshold.unwrap_or(usual.xtc_threshold),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
            ..usual
        }
    }
}

/// The most likely tokens to draw from; all where the number is not positive, as vLLM has it.
#[must_use]
pub fn top_k(given: i64) -> Option<u32> {
    (given > 0).then(|| given.min(u32::MAX.into()) as u32)
}

/// Deviations within which tokens are kept; all tokens where the number is not positive, as llama.cpp has it.
#[must_use]
pub fn top_n_sigma(given: f32) -> f32 {
    given.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_parameters_are_read_and_can_be_overridden() {
        let qwen = serde_json::json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
            "eos_token_id": [1, 2], "transformers_version": "4.51.0"});
        let own = SamplingDefaults::of_model(qwen.as_object().unwrap()).unwrap();
        let params = own.params();
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, Some(20), 0.95));
        let over = r#"{"temperature": 0, "top_k": -1, "top_n_sigma": -1, "xtc_probability": 0.25}"#;
        let params = SamplingDefaults::from_json(over).unwrap().or(own).params();
        assert_eq!((params.top_n_sigma, params.xtc_probability), (0.0, 0.25));
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.0, None, 0.95));
        assert_eq!(SamplingDefaults::default().params(), SamplingParams::default());
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (json, said) in [
            ("[]", "no JSON object"),
            (r#"{"temprature": 1}"#, "temprature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"typical_p": 1.1}"#, "typical_p"),
            (r#"{"xtc_probability": -1}"#, "xtc_probability"),
        ] {
            let error = SamplingDefaults::from_json(json).unwrap_err();
            assert!(error.contains(said), "{json}: {error}");
        }
        let wrong = serde_json::json!({"min_p": 7});
        assert!(SamplingDefaults::of_model(wrong.as_object().unwrap()).is_err());
    }
}
