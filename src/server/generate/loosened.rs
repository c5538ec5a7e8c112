//! What an answer's head says of schemas that it follows in part.

use axum::http::{HeaderName, HeaderValue};

use crate::grammar::Loosened;

/// The header's name.
pub(crate) const NAME: &str = "x-pleach-loosened";
/// Bytes of its value.
const MAX_BYTES: usize = 1 << 10;

/// A header of an answer.
pub(crate) type Head = [(HeaderName, HeaderValue); 1];

/// The header that names what is not followed, where anything is; schemas without a subject are `field`'s.
pub(crate) fn head(field: &str, loosened: &[Loosened]) -> Option<Head> {
    if loosened.is_empty() {
        return None;
    }
    let text = text(field, loosened);
    tracing::debug!(loosened = text, "schemas are followed in part");
    let value = HeaderValue::from_str(&text).ok()?;
    Some([(HeaderName::from_static(NAME), value)])
}

fn text(field: &str, loosened: &[Loosened]) -> String {
    let each = loosened.iter().map(|Loosened { subject, keywords }| {
        let subject = if subject.is_empty() { field } else { subject };
        let what = if keywords.is_empty() { "any object".into() } else { keywords.join(", ") };
        format!("{subject}: {what}")
    });
    let mut text = each.collect::<Vec<_>>().join("; ");
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES - 5));
        text += "; ...";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_what_is_not_followed_and_ends() {
        let one = |subject: &str, keywords: &[&'static str]| Loosened {
            subject: subject.into(),
            keywords: keywords.to_vec(),
        };
        let value = |loosened: &[Loosened]| {
            head("response_format", loosened).map(|[(_, value)]| value.to_str().unwrap().to_owned())
        };
        assert_eq!(value(&[]), None);
        let two = [one("tool a", &["not", "format"]), one("tool b", &[]), one("", &["if"])];
        let text = "tool a: not, format; tool b: any object; response_format: if";
        assert_eq!(value(&two).as_deref(), Some(text));
        let many = vec![one(&format!("tool {}", "x".repeat(64)), &["uniqueItems"]); 128];
        let value = value(&many).unwrap();
        assert!(value.len() <= MAX_BYTES && value.ends_with("; ..."), "{value}");
    }
}
