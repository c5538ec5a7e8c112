//! JSON objects on disk, read field by field.

use std::path::Path;

use serde_json::{Map, Value};

use super::CheckpointError;

/// Largest JSON file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// Parses a JSON object; `None` where the file does not exist.
pub(super) fn object(path: &Path) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let io = |error| CheckpointError::Io { path: path.into(), error };
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(meta) if meta.len() > MAX_BYTES => {
            return Err(CheckpointError::corrupt(path, format!("{} bytes of JSON", meta.len())));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| CheckpointError::corrupt(path, e.to_string()))
}

/// Fields of a JSON object, and what an error calls them: `prefix` and the field.
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    pub(super) prefix: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

impl Fields<'_> {
    pub(super) fn error(&self, field: &str, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::field(self.path, &format!("{}{field}", self.prefix), reason)
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    pub(super) fn optional_usize(&self, field: &str) -> Result<Option<usize>, CheckpointError> {
        self.get(field)
            .map(|v| {
                v.as_u64()
                    .and_then(|v| u32::try_from(v).ok())
                    .map(|v| v as usize)
                    .ok_or_else(|| self.error(field, format!("{v} is no number of this kind")))
            })
            .transpose()
    }

    pub(super) fn usize(&self, field: &str) -> Result<usize, CheckpointError> {
        self.optional_usize(field)?.ok_or_else(|| self.error(field, "is missing"))
    }

    pub(super) fn optional_f64(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        self.get(field)
            .map(|v| v.as_f64().ok_or_else(|| self.error(field, format!("{v} is no number"))))
            .transpose()
    }

    pub(super) fn f64(&self, field: &str) -> Result<f64, CheckpointError> {
        self.optional_f64(field)?.ok_or_else(|| self.error(field, "is missing"))
    }

    pub(super) fn bool(&self, field: &str) -> Result<bool, CheckpointError> {
        match self.get(field) {
            None => Ok(false),
            Some(v) => {
                v.as_bool().ok_or_else(|| self.error(field, format!("{v} is not true or false")))
            }
        }
    }

    pub(super) fn token_ids(&self, field: &str) -> Result<Vec<u32>, CheckpointError> {
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(field) {
            None => Some(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(v) => id(v).map(|id| vec![id]),
        }
        .ok_or_else(|| self.error(field, "is no token id"))
    }
}
