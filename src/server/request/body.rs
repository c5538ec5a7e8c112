//! A JSON request body, taken apart into the fields that types name. What is left over is refused by
//! name, so that nothing a client asks for is silently ignored.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use super::json;
use crate::server::bounds;
use crate::server::error::ApiError;

/// The fields of a request that have not been read yet.
pub(crate) struct Body(Map<String, Value>);

impl Body {
    pub(crate) fn parse(bytes: Result<Bytes, BytesRejection>) -> Result<Self, ApiError> {
        let bytes = bytes.map_err(|e| ApiError::status(e.status(), e.body_text()))?;
        bounds::check_text(&bytes)?;
        match json::read(&bytes, None)? {
            Value::Object(map) => {
                bounds::check_fields(&map)?;
                Ok(Self(map))
            }
            _ => Err(ApiError::invalid("body", "the body must be a JSON object")),
        }
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.0.get(field).is_some_and(|value| !value.is_null())
    }

    /// Reads the fields of a struct and leaves the others; null is as good as absent.
    pub(crate) fn read<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(self).map_err(|error| {
            let (path, reason) = (error.path().to_string(), error.inner().to_string());
            match reason.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
                // The one error that the path leads up to, but not to the field itself.
                Some(field) if path == "." => {
                    ApiError::invalid(field, format!("`{field}` is required"))
                }
                _ => {
                    let field = path.split(['.', '[']).next().unwrap_or_default();
                    ApiError::invalid(field, format!("`{path}`: {reason}"))
                }
            }
        })
    }

    /// Refuses whatever is left.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                let message = format!("`{name}` is not supported by this server; leave it out");
                Err(ApiError::invalid(&name, message))
            }
            None => Ok(()),
        }
    }
}

impl<'de> Deserializer<'de> for &mut Body {
    type Error = serde_json::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let named = fields.iter().filter_map(|field| self.0.remove_entry(*field));
        let taken: Map<String, Value> = named.filter(|(_, value)| !value.is_null()).collect();
        Value::Object(taken).deserialize_struct(name, fields, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("a body is read into structs"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
