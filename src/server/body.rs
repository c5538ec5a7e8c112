//! A JSON request body, taken apart field by field. What is left over is refused by name, so that
//! nothing a client asks for is silently ignored.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ApiError;

/// The fields of a request that have not been taken yet.
pub(super) struct Body(Map<String, Value>);

impl Body {
    pub(super) fn parse(bytes: Result<Bytes, BytesRejection>) -> Result<Self, ApiError> {
        let bytes = bytes.map_err(|e| ApiError::status(e.status(), e.body_text()))?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(ApiError::invalid("body", "the body must be a JSON object")),
            Err(e) => Err(ApiError::invalid("body", format!("the body is not JSON: {e}"))),
        }
    }

    /// A field, where it is given and not null.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| ApiError::invalid(name, format!("`{name}`: {e}"))),
        }
    }

    pub(super) fn or<T: DeserializeOwned>(
        &mut self,
        name: &str,
        default: T,
    ) -> Result<T, ApiError> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    pub(super) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::invalid(name, format!("`{name}` is required")))
    }

    /// Accepts a field that has no effect, or only the value that asks for nothing.
    pub(super) fn only(&mut self, name: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.take::<Value>(name)? {
            Some(value) if !harmless.contains(&value) => Err(unsupported(name)),
            _ => Ok(()),
        }
    }

    /// Refuses whatever is left.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(unsupported(&name)),
            None => Ok(()),
        }
    }
}

fn unsupported(name: &str) -> ApiError {
    ApiError::invalid(name, format!("`{name}` is not supported by this server; leave it out"))
}
