//! Text that is held until it is known what it is.

use super::super::stop_strings::overlap;

/// Takes the text up to `end` and that as well, or up to where it may begin; says whether it is there.
pub(super) fn until(held: &mut String, end: &str) -> (String, bool) {
    let (at, length) = match held.find(end) {
        Some(at) => (at, end.len()),
        None => (held.len() - overlap(held, end), 0),
    };
    let rest = held.split_off(at + length);
    let mut text = std::mem::replace(held, rest);
    text.truncate(at);
    (text, length > 0)
}
