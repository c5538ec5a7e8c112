//! Texts in grammars of the Lark syntax.

use serde_json::json;

use crate::text::Mark;

/// A text in a grammar, where `marks` are special tokens.
pub(crate) fn literal(text: &str, marks: &[Mark]) -> String {
    let found = marks.iter().filter_map(|(id, mark)| Some((text.find(mark)?, mark.len(), id)));
    match found.min() {
        Some((at, length, id)) => {
            let (before, after) = (&text[..at], &text[at + length..]);
            format!("{} <[{id}]> {}", literal(before, marks), literal(after, marks))
        }
        None if text.is_empty() => String::new(),
        None => json!(text).to_string(),
    }
}

/// An expression for any text that does not begin with `tag`.
pub(crate) fn any_text_but(tag: &str) -> String {
    // Beginnings of the tag, with a character that it does not go on with, or with none at all.
    let ways = tag.char_indices().map(|(at, next)| {
        let escape = |text: &str| text.chars().map(escaped).collect::<String>();
        let alone = if at == 0 { String::new() } else { format!("{}|", escape(&tag[..at])) };
        format!("{alone}{}[^{}](.|\\n)*", escape(&tag[..at]), escaped(next))
    });
    format!("({})?", ways.collect::<Vec<_>>().join("|"))
}

/// A character in an expression between slashes.
fn escaped(character: char) -> String {
    match "\\^$.|?*+()[]{}-/".contains(character) {
        true => format!("\\{character}"),
        false => character.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_left_out_character_by_character() {
        assert_eq!(any_text_but("<t"), "([^<](.|\\n)*|<|<[^t](.|\\n)*)?");
        assert_eq!(any_text_but("[/"), "([^\\[](.|\\n)*|\\[|\\[[^\\/](.|\\n)*)?");
    }
}
