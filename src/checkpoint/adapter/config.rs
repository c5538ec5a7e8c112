//! `adapter_config.json`: ranks and scales.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::fields::{Fields, object};

/// Fields that change what an adapter computes in a way that is not followed, and what to do without them.
const FOREIGN: [(&str, &str); 15] = [
    ("use_dora", "train with use_dora=False, or merge the adapter into its model"),
    ("lora_bias", "train with lora_bias=False, or merge the adapter into its model"),
    ("bias", "train with bias=\"none\", or merge the adapter into its model"),
    ("modules_to_save", "train without it, or merge the adapter into its model"),
    ("fan_in_fan_out", "it is for models whose weights are transposed; leave it false"),
    ("trainable_token_indices", "train without it, or merge the adapter into its model"),
    ("target_parameters", "name modules in target_modules instead"),
    ("layer_replication", "train without it, or merge the adapter into its model"),
    ("alora_invocation_tokens", "train without it"),
    ("use_qalora", "train without it, or merge the adapter into its model"),
    ("use_bdlora", "train without it, or merge the adapter into its model"),
    ("arrow_config", "serve the adapters that it chooses between each by its own name"),
    ("kasa_config", "train without it, or merge the adapter into its model"),
    ("monteclora_config", "train without it, or merge the adapter into its model"),
    ("velora_config", "train without it, or merge the adapter into its model"),
];

/// Starting points that leave the model's own weights as they are.
const STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Ranks and scales of an adapter.
pub(super) struct AdapterConfig {
    path: PathBuf,
    rank: usize,
    alpha: f64,
    rank_stabilized: bool,
    rank_pattern: Map<String, Value>,
    alpha_pattern: Map<String, Value>,
}

impl AdapterConfig {
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let map = object(path)?.ok_or_else(|| {
            let reason = "is missing; name a folder that `peft` or `pleach-tools train` wrote";
            CheckpointError::corrupt(path, reason)
        })?;
        let fields = Fields { path, prefix: "", map: &map };
        let kind = fields.get("peft_type").unwrap_or(&Value::Null);
        if kind != "LORA" {
            return Err(fields.error("peft_type", format!("{kind} is not followed; LORA is")));
        }
        for (field, advice) in FOREIGN {
            if let Some(value) = fields.get(field).filter(|value| is_set(value)) {
                return Err(fields.error(field, format!("{value} is not followed: {advice}")));
            }
        }
        if let Some(Value::String(start)) = fields.get("init_lora_weights")
            && !STARTS.contains(&start.as_str())
        {
            let reason = format!(
                "\"{start}\" may change the model's own weights: convert the adapter to plain LoRA when it is saved"
            );
            return Err(fields.error("init_lora_weights", reason));
        }
        let rank = fields.usize("r")?;
        if rank == 0 {
            return Err(fields.error("r", "must be above 0"));
        }
        let alpha = fields.f64("lora_alpha")?;
        let rank_stabilized = fields.bool("use_rslora")?;
        let pattern = |field: &str, fits: fn(&Value) -> bool, what: &str| {
            let map = match fields.get(field) {
                None => return Ok(Map::new()),
                Some(Value::Object(map)) => map.clone(),
                Some(other) => return Err(fields.error(field, format!("{other} is no object"))),
            };
            for (name, value) in &map {
                if !is_plain(name) {
                    let reason = format!(
                        "`{name}` is a regular expression; name the modules it fits, one by one"
                    );
                    return Err(fields.error(field, reason));
                }
                if !fits(value) {
                    return Err(fields.error(field, format!("`{name}`: {value} is no {what}")));
                }
            }
            Ok(map)
        };
        let is_rank = |value: &Value| value.as_u64().is_some_and(|rank| rank > 0);
        Ok(Self {
            path: path.into(),
            rank,
            alpha,
            rank_stabilized,
            rank_pattern: pattern("rank_pattern", is_rank, "rank above 0")?,
            alpha_pattern: pattern("alpha_pattern", |value| value.is_number(), "number")?,
        })
    }

    /// The rank of a module and what its product is multiplied by.
    pub(super) fn of(&self, module: &str) -> Result<(usize, f32), CheckpointError> {
        let rank = self.named("rank_pattern", &self.rank_pattern, module)?;
        let rank = rank.and_then(Value::as_u64).map_or(self.rank, |rank| rank as usize);
        let alpha = self.named("alpha_pattern", &self.alpha_pattern, module)?;
        let alpha = alpha.and_then(Value::as_f64).unwrap_or(self.alpha);
        let divisor = if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / divisor) as f32))
    }

    /// What a pattern says of a module.
    fn named<'a>(
        &self,
        field: &str,
        pattern: &'a Map<String, Value>,
        module: &str,
    ) -> Result<Option<&'a Value>, CheckpointError> {
        let mut found: Option<(&str, &Value)> = None;
        for (name, value) in pattern.iter().filter(|(name, _)| fits(name, module)) {
            match found {
                Some((other, different)) if different != value => {
                    let reason = format!(
                        "`{other}` and `{name}` both fit {module} and differ; leave one of them"
                    );
                    return Err(CheckpointError::field(&self.path, field, reason));
                }
                _ => found = Some((name, value)),
            }
        }
        Ok(found.map(|(_, value)| value))
    }
}

/// Whether a field says more than nothing.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => text != "none",
        _ => true,
    }
}

/// Whether a pattern is the name of a module or its end, perhaps behind `^`, which says that it is all of it.
fn is_plain(pattern: &str) -> bool {
    let name = pattern.strip_prefix('^').unwrap_or(pattern);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
}

/// Whether a pattern fits a module: by its whole name, or by the end of it from a dot on.
fn fits(pattern: &str, module: &str) -> bool {
    match pattern.strip_prefix('^') {
        Some(whole) => whole == module,
        None => {
            let before = module.strip_suffix(pattern);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        }
    }
}
