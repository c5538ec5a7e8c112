//! Arguments that are a JSON object, and texts in one.

use serde_json::json;

/// Where a JSON object that arrives in pieces ends.
#[derive(Debug, Default)]
pub(super) struct Object {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Object {
    /// The length of the piece that belongs to it, if it ends there.
    pub(super) fn end(&mut self, piece: &str) -> Option<usize> {
        for (place, byte) in piece.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(place + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// A text as it stands between the quotes of a JSON string.
pub(super) fn escaped(text: &str) -> String {
    let quoted = json!(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
