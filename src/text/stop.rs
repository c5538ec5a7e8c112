//! Stop strings: found across token borders, never shown in part.

/// Looks for stop strings in a text that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that could be the beginning of a stop string.
    held: String,
}

impl StopStrings {
    /// A matcher for the given strings; empty ones are ignored.
    #[must_use]
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|s| !s.is_empty()).collect();
        Self { stops, held: String::new() }
    }

    /// Adds a piece of text; returns what may be shown, and whether a stop string was reached.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text held back, at the end.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that begins `stop`.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).rev().find(|at| text.ends_with(&stop[..*at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the pieces, the shown text is the text before the first stop string.
    #[test]
    fn pieces_do_not_matter() {
        let text = "one two END three";
        for width in 1..text.len() {
            let mut stops = StopStrings::new(["END".to_owned(), "ree!".to_owned()]);
            let mut shown = String::new();
            let mut stopped = false;
            for piece in text.as_bytes().chunks(width) {
                let (more, stop) = stops.push(std::str::from_utf8(piece).unwrap());
                shown += &more;
                stopped = stop;
                if stop {
                    break;
                }
            }
            assert!(stopped);
            assert_eq!(shown, "one two ");
        }
    }

    #[test]
    fn held_text_comes_out_at_the_end_or_when_it_cannot_match() {
        let mut stops = StopStrings::new(["abcd".to_owned()]);
        assert_eq!(stops.push("xab"), ("x".to_owned(), false));
        assert_eq!(stops.push("cx"), ("abcx".to_owned(), false));
        assert_eq!(stops.push("äab"), ("ä".to_owned(), false));
        assert_eq!(stops.finish(), "ab");
    }
}
