//! The reasoning of a model, told apart from the answer that follows it.

use super::stop_strings::overlap;

/// The texts around a model's reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkTags {
    /// What it begins with.
    pub open: &'static str,
    /// What it ends with.
    pub close: &'static str,
}

/// How an answer stands to reasoning where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// The prompt ends within reasoning.
    Begun,
    /// The answer may begin with reasoning.
    Possible,
}

impl ThinkTags {
    /// Qwen3, DeepSeek-R1, SmolLM3, GLM and others; Mistral's.
    const KNOWN: [Self; 2] =
        [Self { open: "<think>", close: "</think>" }, Self { open: "[THINK]", close: "[/THINK]" }];

    /// The tags that a chat template knows.
    #[must_use]
    pub(super) fn of_template(source: &str) -> Option<Self> {
        Self::KNOWN.into_iter().find(|tags| source.contains(tags.close))
    }

    /// How an answer to a prompt begins; `None` where it does not reason, because the prompt has ended its reasoning.
    #[must_use]
    pub fn after_prompt(self, prompt: &str) -> Option<Thinking> {
        let prompt = prompt.trim_end();
        match prompt.ends_with(self.open) {
            true => Some(Thinking::Begun),
            false => (!prompt.ends_with(self.close)).then_some(Thinking::Possible),
        }
    }

    /// How an answer goes on with `said`, the beginning of a message.
    #[must_use]
    pub fn after_words(self, said: &str) -> Option<Thinking> {
        let (open, close) = (said.rfind(self.open), said.rfind(self.close));
        match open > close {
            true => Some(Thinking::Begun),
            false => said.trim().is_empty().then_some(Thinking::Possible),
        }
    }
}

/// What a piece of text adds: reasoning, then words of the answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Reasoning, without the tags and the white space within and behind them.
    pub reasoning: String,
    /// The answer.
    pub answer: String,
}

/// Tells reasoning and answer apart in a text that arrives in pieces.
#[derive(Debug)]
pub struct ReasoningParser {
    tags: ThinkTags,
    place: Place,
    /// Text that is not known yet to be one thing or the other.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Where reasoning may begin.
    Start,
    /// Within its tags, before its first word.
    Opened,
    Reasoning,
    /// Behind its tags, before the first word of the answer.
    Closed,
    Answer,
}

impl ReasoningParser {
    /// A parser of an answer from its beginning.
    #[must_use]
    pub fn new(tags: ThinkTags, thinking: Thinking) -> Self {
        let place = match thinking {
            Thinking::Begun => Place::Opened,
            Thinking::Possible => Place::Start,
        };
        Self { tags, place, held: String::new() }
    }

    /// Whether the text so far ends within reasoning; `None` where it may turn out to begin with it.
    #[must_use]
    pub fn thinks(&self) -> Option<bool> {
        match self.place {
            Place::Start => None,
            Place::Opened | Place::Reasoning => Some(true),
            Place::Closed | Place::Answer => Some(false),
        }
    }

    /// What a piece of text adds.
    pub fn push(&mut self, piece: &str) -> Split {
        self.held.push_str(piece);
        let mut split = Split::default();
        while self.step(&mut split) {}
        split
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Reasoning => Split { reasoning: held.trim_end().into(), answer: String::new() },
            _ => Split { reasoning: String::new(), answer: held },
        }
    }

    /// Takes what it can from the held text; returns whether there may be more to take.
    fn step(&mut self, split: &mut Split) -> bool {
        let ThinkTags { open, close } = self.tags;
        let before = self.place;
        match self.place {
            Place::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(open) {
                    (self.held, self.place) = (rest.to_owned(), Place::Opened);
                } else if !open.starts_with(text) {
                    self.place = Place::Answer;
                }
            }
            Place::Opened | Place::Closed => {
                let blank = self.held.len() - self.held.trim_start().len();
                self.held.drain(..blank);
                if !self.held.is_empty() {
                    let thinks = self.place == Place::Opened;
                    self.place = if thinks { Place::Reasoning } else { Place::Answer };
                }
            }
            Place::Reasoning => {
                let (end, behind) = match self.held.find(close) {
                    Some(at) => (at, at + close.len()),
                    None => {
                        let end = self.held.len() - overlap(&self.held, close);
                        (end, self.held[..end].trim_end().len())
                    }
                };
                split.reasoning.push_str(self.held[..end].trim_end());
                if behind > end {
                    self.place = Place::Closed;
                }
                self.held.drain(..behind);
            }
            Place::Answer => split.answer.push_str(&std::mem::take(&mut self.held)),
        }
        self.place != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS: ThinkTags = ThinkTags::KNOWN[0];

    fn parse(thinking: Thinking, text: &str, width: usize) -> (String, String) {
        let mut parser = ReasoningParser::new(TAGS, thinking);
        let characters: Vec<char> = text.chars().collect();
        let mut all = (String::new(), String::new());
        let mut add = |split: Split| {
            all.0 += &split.reasoning;
            all.1 += &split.answer;
        };
        for piece in characters.chunks(width) {
            add(parser.push(&piece.iter().collect::<String>()));
        }
        add(parser.finish());
        all
    }

    /// Whatever the pieces, the parts are the same.
    #[test]
    fn reasoning_is_found_in_pieces_of_any_size() {
        use Thinking::{Begun, Possible};
        for (thinking, text, reasoning, answer) in [
            (
                Possible,
                "<think>\nWell,  </thin\n\n so \n</think>\n\nYes. ",
                "Well,  </thin\n\n so",
                "Yes. ",
            ),
            (Possible, "\n<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
            (Possible, "<think>\n\n</think>\n\nNo", "", "No"),
            (Possible, " Plain: <think>a</think>", "", " Plain: <think>a</think>"),
            (Possible, "<thinking>a", "", "<thinking>a"),
            (Possible, "<th", "", "<th"),
            (Possible, "", "", ""),
            (Possible, "<think>cut off </thi", "cut off </thi", ""),
            (Begun, "\nLänger \n\n </think>\n{\"a\": 1}\n", "Länger", "{\"a\": 1}\n"),
            (Begun, "</think>ok", "", "ok"),
            (Begun, "<think>twice</think>ok", "<think>twice", "ok"),
            (Begun, " \n ", "", ""),
        ] {
            for width in 1..=text.chars().count().max(1) {
                let expected = (reasoning.to_owned(), answer.to_owned());
                assert_eq!(parse(thinking, text, width), expected, "{text:?} by {width}");
            }
        }
    }

    #[test]
    fn it_thinks_between_the_tags() {
        let mut parser = ReasoningParser::new(TAGS, Thinking::Possible);
        let thinks = ["<", "think>", " a", " b\n", "</think>", "\n", "c"].map(|piece| {
            parser.push(piece);
            parser.thinks()
        });
        let [no, yes] = [Some(false), Some(true)];
        assert_eq!(thinks, [None, yes, yes, yes, no, no, no]);
    }

    #[test]
    fn prompts_say_how_their_answers_begin() {
        for (prompt, thinking) in [
            ("<|im_start|>assistant\n", Some(Thinking::Possible)),
            ("<|im_start|>assistant\n<think>\n", Some(Thinking::Begun)),
            ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None),
        ] {
            assert_eq!(TAGS.after_prompt(prompt), thinking, "{prompt:?}");
        }
        for (said, thinking) in [
            ("", Some(Thinking::Possible)),
            ("<think>\nWell", Some(Thinking::Begun)),
            ("<think>a</think>", None),
            ("Yes", None),
        ] {
            assert_eq!(TAGS.after_words(said), thinking, "{said:?}");
        }
        assert_eq!(ThinkTags::of_template("{{ x.split('</think>') }}"), Some(TAGS));
        assert_eq!(ThinkTags::of_template("[/THINK]").map(|tags| tags.open), Some("[THINK]"));
        assert_eq!(ThinkTags::of_template("{{ x }}"), None);
    }
}
