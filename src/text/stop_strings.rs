//! Stop strings: found across token borders, never shown in part.

use std::sync::Arc;

use tokenizers::Tokenizer;

use super::{Detokenizer, Mark};

/// The text of a growing token sequence, up to its first stop string.
#[derive(Debug, Clone)]
pub struct StoppingText {
    text: Detokenizer,
    stops: StopStrings,
    /// Tokens to come that complete no stop string.
    unsearched: usize,
}

impl StoppingText {
    /// A text that goes on with another one and ends at one of `stops`, none of which is empty.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> Self {
        let (text, stops) = (Detokenizer::new(tokenizer), StopStrings::new(stops));
        Self { text, stops, unsearched: 0 }
    }

    /// Looks for stop strings that are completed behind so many tokens.
    #[must_use]
    pub fn behind(self, tokens: usize) -> Self {
        Self { unsearched: tokens, ..self }
    }

    /// Shows the stop string that is reached, too, where that is wanted.
    #[must_use]
    pub fn showing_stop(mut self, shown: bool) -> Self {
        self.stops.shown = shown;
        self
    }

    /// Shows special tokens as text, with these texts.
    #[must_use]
    pub fn showing(self, marks: &[Mark]) -> Self {
        Self { text: self.text.showing(marks), ..self }
    }

    /// Adds a token; returns the text that may be shown, and the place in the list of the stop string that
    /// was reached.
    pub fn push(&mut self, token: u32) -> (String, Option<usize>) {
        let piece = self.text.push(token);
        if self.unsearched > 0 {
            self.unsearched -= 1;
            return (self.stops.pass(&piece), None);
        }
        self.stops.push(&piece)
    }

    /// The text held back, at the end of the sequence, which may reach a stop string too.
    pub fn finish(&mut self) -> (String, Option<usize>) {
        let (mut text, reached) = self.stops.push(&self.text.finish());
        if reached.is_none() {
            text += &self.stops.finish();
        }
        (text, reached)
    }

    /// Characters of the text so far, with those that may begin a stop string.
    #[must_use]
    pub fn position(&self) -> usize {
        self.text.position()
    }

    /// The stop string at a place.
    #[must_use]
    pub fn stop(&self, place: usize) -> &str {
        &self.stops.stops[place]
    }
}

/// Looks for stop strings in a text that arrives in pieces.
#[derive(Debug, Clone)]
struct StopStrings {
    stops: Arc<[String]>,
    /// Text that could be the beginning of a stop string.
    held: String,
    /// Whether the stop string that is reached is shown.
    shown: bool,
}

impl StopStrings {
    fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into(), held: String::new(), shown: false }
    }

    /// Adds a piece of text; returns what may be shown, and the place of the stop string that was reached.
    fn push(&mut self, piece: &str) -> (String, Option<usize>) {
        self.held.push_str(piece);
        // The search prepares for the whole stop string first, so it waits until there is room for one.
        let fits = |(_, stop): &(usize, &String)| stop.len() <= self.held.len();
        let found = self.stops.iter().enumerate().filter(fits);
        let found = found.filter_map(|(place, stop)| Some((self.held.find(&**stop)?, place)));
        if let Some((at, place)) = found.min() {
            self.held.truncate(at + if self.shown { self.stops[place].len() } else { 0 });
            return (std::mem::take(&mut self.held), Some(place));
        }
        (self.released(), None)
    }

    /// Adds a piece of text that completes no stop string; returns what may be shown.
    fn pass(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        self.released()
    }

    /// The text that begins no stop string, which may be shown.
    fn released(&mut self) -> String {
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text held back, at the end.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that begins `stop`.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    // Of a long stop string no more is looked at than there is text.
    let longest = text.len().min(stop.len().saturating_sub(1));
    let ends = (text.len() - longest..text.len()).filter(|at| text.is_char_boundary(*at));
    ends.map(|at| &text[at..]).find(|end| stop.starts_with(end)).map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the pieces, the shown text is the text before the first stop string.
    #[test]
    fn pieces_do_not_matter() {
        let text = "one two END three";
        for width in 1..text.len() {
            let mut stops = StopStrings::new(vec!["ree!".to_owned(), "END".to_owned()]);
            let mut shown = String::new();
            let mut stopped = false;
            for piece in text.as_bytes().chunks(width) {
                let (more, stop) = stops.push(std::str::from_utf8(piece).unwrap());
                shown += &more;
                stopped = stop == Some(1);
                if stopped {
                    break;
                }
            }
            assert!(stopped);
            assert_eq!(shown, "one two ");
        }
    }

    #[test]
    fn held_text_comes_out_at_the_end_or_when_it_cannot_match() {
        let mut stops = StopStrings::new(vec!["abcd".to_owned()]);
        assert_eq!(stops.push("xab"), ("x".to_owned(), None));
        assert_eq!(stops.push("cx"), ("abcx".to_owned(), None));
        assert_eq!(stops.push("äab"), ("ä".to_owned(), None));
        assert_eq!(stops.finish(), "ab");
    }

    #[test]
    fn what_is_passed_completes_nothing_and_a_stop_may_be_shown() {
        let mut stops = StopStrings::new(vec!["END".to_owned()]);
        stops.shown = true;
        assert_eq!(stops.pass("an END, an EN"), "an END, an ");
        assert_eq!(stops.push("D of"), ("END".to_owned(), Some(0)));
        assert_eq!(stops.finish(), "");
    }

    #[test]
    fn an_overlap_is_the_longest_end_that_begins_the_stop() {
        for (text, stop, expected) in [
            ("", "abc", 0),
            ("xab", "abc", 2),
            ("aaa", "aaaa", 3),
            ("aaa", "aa", 1),
            ("xä", "äb", 2),
            ("xa", "äb", 0),
            ("ab", "", 0),
            ("日本", "本日", 3),
        ] {
            assert_eq!(overlap(text, stop), expected, "{text} {stop}");
        }
    }

    /// A stop string of megabytes costs a token no more than a short one.
    #[test]
    fn long_stops_are_not_walked() {
        let mut stops = StopStrings::new(vec!["x".repeat(64 << 20)]);
        let started = std::time::Instant::now();
        for _ in 0..1000 {
            assert_eq!(stops.push("yes "), ("yes ".to_owned(), None));
        }
        assert!(started.elapsed().as_secs_f64() < 5.0);
    }
}
