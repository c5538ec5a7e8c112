//! JSON of requests, in which no object has a name twice. Which of two values counts is left to each reader, so a client
//! may mean the one and a proxy in front have checked the other: they are refused.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::server::error::ApiError;

/// Reads a body, or the text of one of its fields.
///
/// # Errors
/// 400 where it is not JSON or has a name twice. That names the field; for a name of the body itself, that name.
pub(crate) fn read(text: &[u8], field: Option<&str>) -> Result<Value, ApiError> {
    let twice = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Unique { field, twice: &twice }.deserialize(&mut reader);
    let read = read.and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| match (twice.take(), field) {
        (Some(param), _) => ApiError::invalid(&param, error.to_string()),
        (None, Some(field)) => ApiError::invalid(field, format!("`{field}` is not JSON: {error}")),
        (None, None) => ApiError::invalid("body", format!("the body is not JSON: {error}")),
    })
}

/// Reads a value whose objects have each name once.
#[derive(Clone, Copy)]
struct Unique<'a> {
    /// The body's field that the value belongs to; `None` for the body itself.
    field: Option<&'a str>,
    /// The field in which a name is there twice.
    twice: &'a RefCell<Option<String>>,
}

impl Unique<'_> {
    /// The error of a name that is there again.
    fn again<E: Error>(self, name: &str) -> E {
        self.twice.replace(Some(self.field.unwrap_or(name).to_owned()));
        match self.field {
            Some(field) => E::custom(format_args!("`{field}`: `{name}` is there twice")),
            None => E::custom(format_args!("`{name}` is there twice")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if map.contains_key(&name) {
                return Err(self.again(&name));
            }
            let field = Some(self.field.unwrap_or(&name));
            let value = entries.next_value_seed(Unique { field, ..self })?;
            map.insert(name, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_read_as_they_are() {
        let text = r#"{"a": [1, -2, 0.5, 1e300, true, null, "\u00e9\n"], "b": {"a": {}}, "": []}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(read(text.as_bytes(), None).unwrap(), expected);
        let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(
            read(nested.as_bytes(), None).unwrap(),
            json!(serde_json::from_str::<Value>(&nested).unwrap())
        );
        for wrong in
            ["", "{", "1 2", "{\"a\": 1,}", "[1e999]", "\"\\ud800\"", "nan", &"[".repeat(1000)]
        {
            let error = read(wrong.as_bytes(), None).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some("body"), "{wrong}");
            assert!(error.message.starts_with("the body is not JSON: "), "{}", error.message);
            let error = read(wrong.as_bytes(), Some("field")).unwrap_err().body().error;
            assert!(error.message.starts_with("`field` is not JSON: "), "{}", error.message);
        }
        assert!(read(b"\"\xff\"", None).is_err());
    }

    #[test]
    fn names_that_are_there_twice_are_refused() {
        for (text, param, message) in [
            (r#"{"a": 1, "b": 2, "a": 3}"#, "a", "`a` is there twice at line 1 column"),
            (r#"{"a": null, "\u0061": null}"#, "a", "`a` is there twice"),
            (r#"{"bias": {"7": 1, "8": 1, "7": 1}}"#, "bias", "`bias`: `7` is there twice"),
            (r#"{"x": {}, "m": [{}, {"c": {"d": 1, "d": 1}}]}"#, "m", "`m`: `d` is there twice"),
            (r#"{"": {"": 0, "": 0}}"#, "", "``: `` is there twice"),
        ] {
            let error = read(text.as_bytes(), None).unwrap_err().body().error;
            assert_eq!(error.param.as_deref(), Some(param), "{text}");
            assert!(error.message.starts_with(message), "{}", error.message);
        }
        // The same name in two objects is no repetition.
        assert!(read(br#"[{"a": {"a": 1}}, {"a": 2}]"#, None).is_ok());
        let error =
            read(br#"{"type": 1, "type": 2}"#, Some("guided_json")).unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some("guided_json"));
    }
}
