//! What the text of one choice says as it grows: reasoning, words, calls of functions.

use super::said::Said;
use super::tool_calls::{Calling, Calls};
use crate::server::wire::{ReasoningFormat, ReasoningOptions};
use crate::text::reasoning::{ReasoningParser, Split};
use crate::text::{ThinkTags, Thinking};

/// What becomes of a model's reasoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Reasoning {
    /// It is told apart from the answer, word by word.
    #[default]
    Streamed,
    /// It is told apart from the answer, and sent as a whole.
    Gathered,
    /// It is left out.
    Hidden,
    /// It stands in the answer's text, tags and all.
    InText,
}

impl From<ReasoningOptions> for Reasoning {
    fn from(options: ReasoningOptions) -> Self {
        let in_text = options.separate_reasoning == Some(false)
            || options.reasoning_format == Some(ReasoningFormat::None);
        match (options.include_reasoning, options.stream_reasoning) {
            (Some(false), _) => Self::Hidden,
            _ if in_text => Self::InText,
            (_, Some(false)) => Self::Gathered,
            _ => Self::Streamed,
        }
    }
}

/// Reasoning that stands in the text, tags and all, told apart from what follows it.
struct Aloud {
    parser: ReasoningParser,
    /// What may turn out to begin it.
    held: String,
    /// What it says that has not been said.
    thought: String,
}

impl Aloud {
    fn new(parser: ReasoningParser) -> Self {
        Self { parser, held: String::new(), thought: String::new() }
    }

    /// Takes in more text; gives what of it stands behind the reasoning.
    fn hear(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let answer = self.parser.push(text).answer;
        if self.parser.thinks().is_none() {
            return String::new();
        }
        let mut heard = std::mem::take(&mut self.held);
        heard.truncate(heard.len().saturating_sub(answer.len()));
        self.thought += &heard;
        answer
    }
}

/// The text of one choice, as it grows.
#[derive(Default)]
pub(crate) struct Speech {
    parser: Option<ReasoningParser>,
    /// Finds where reasoning that stands in the text ends: no call begins before.
    aloud: Option<Aloud>,
    reasoning: Reasoning,
    /// Finds the calls, where the choice may make any.
    calls: Option<Calls>,
    /// What has been heard and not said.
    heard: Split,
    /// Tokens so far, while they may turn out to begin the reasoning.
    undecided: u64,
    reasoning_tokens: u64,
}

impl Speech {
    /// The text of a choice that may reason, and may call functions.
    pub(crate) fn new(
        thinking: Option<(ThinkTags, Thinking)>,
        reasoning: Reasoning,
        calls: Option<Calling>,
    ) -> Self {
        let parser = thinking.map(|(tags, thinking)| ReasoningParser::new(tags, thinking));
        let (parser, aloud) = match reasoning {
            Reasoning::InText => (None, parser.map(Aloud::new).filter(|_| calls.is_some())),
            _ => (parser, None),
        };
        Self { parser, aloud, reasoning, calls: calls.map(Calls::new), ..Self::default() }
    }

    /// Takes in what a token adds to the text.
    pub(crate) fn hear_token(&mut self, text: &str) {
        let thought = self.thinks();
        self.hear(text);
        match self.thinks() {
            None => self.undecided += 1,
            Some(true) => self.reasoning_tokens += 1 + std::mem::take(&mut self.undecided),
            Some(false) => self.reasoning_tokens += u64::from(thought == Some(true)),
        }
    }

    /// Takes in more text.
    pub(crate) fn hear(&mut self, text: &str) {
        match (&mut self.parser, &mut self.aloud) {
            (Some(parser), _) => {
                let split = parser.push(text);
                self.add(split);
            }
            (None, Some(aloud)) => self.heard.answer += &aloud.hear(text),
            (None, None) => self.heard.answer.push_str(text),
        }
    }

    /// What has been heard since the last time; all of it, where the choice has ended.
    pub(crate) fn say(&mut self, ended: bool) -> Vec<Said> {
        if let Some(parser) = self.parser.as_mut().filter(|_| ended) {
            let split = parser.finish();
            self.add(split);
        }
        let mut said = Vec::new();
        let gathers = self.reasoning == Reasoning::Gathered && self.thinks() == Some(true);
        if ended || !gathers {
            let more = std::mem::take(&mut self.heard.reasoning);
            said.extend(Some(more).filter(|text| !text.is_empty()).map(Said::Reasoning));
        }
        if let Some(aloud) = &mut self.aloud {
            if ended {
                self.heard.answer.insert_str(0, &std::mem::take(&mut aloud.held));
            }
            let thought = std::mem::take(&mut aloud.thought);
            said.extend(Some(thought).filter(|text| !text.is_empty()).map(Said::Text));
        }
        let text = std::mem::take(&mut self.heard.answer);
        match &mut self.calls {
            Some(calls) => said.extend(calls.push(&text, ended)),
            None => said.extend(Some(text).filter(|text| !text.is_empty()).map(Said::Text)),
        }
        said
    }

    /// Whether it has begun to call a function.
    pub(crate) fn has_called(&self) -> bool {
        self.calls.as_ref().is_some_and(|calls| calls.begun > 0)
    }

    /// Whether it calls functions, and no call is cut in two.
    pub(crate) fn calls(&self) -> bool {
        self.calls.as_ref().is_some_and(Calls::are_whole)
    }

    /// Tokens of its reasoning, tags included.
    pub(crate) fn reasoning_tokens(&self) -> u64 {
        self.reasoning_tokens
    }

    fn thinks(&self) -> Option<bool> {
        self.parser.as_ref().map_or(Some(false), ReasoningParser::thinks)
    }

    fn add(&mut self, split: Split) {
        if self.reasoning != Reasoning::Hidden {
            self.heard.reasoning.push_str(&split.reasoning);
        }
        self.heard.answer.push_str(&split.answer);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::said::Message;
    use super::*;
    use crate::text::CallFormat;

    /// A call that reasoning speaks of is none, also where the reasoning stands in the text.
    #[test]
    fn reasoning_in_the_text_makes_no_calls() {
        let tags = ThinkTags { open: "<think>", close: "</think>" };
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        let reasoning = format!("<think>\nI could write {call}, or not.\n</think>\n\nHello. ");
        for (thinking, before) in [
            (Thinking::Possible, &reasoning[..]),
            (Thinking::Begun, &reasoning["<think>".len()..]),
            (Thinking::Possible, "<thin air. "),
        ] {
            let text: Vec<char> = format!("{before}{call}").chars().collect();
            for width in 1..=text.len() {
                let calling = Calling { format: CallFormat::Hermes, functions: Arc::default() };
                let mut speech =
                    Speech::new(Some((tags, thinking)), Reasoning::InText, Some(calling));
                let mut message = Message::default();
                for piece in text.chunks(width) {
                    speech.hear_token(&piece.iter().collect::<String>());
                    speech.say(false).into_iter().for_each(|said| message.add(said));
                }
                speech.say(true).into_iter().for_each(|said| message.add(said));
                assert_eq!((&*message.text, message.calls.len()), (before, 1), "{width}");
                assert!(speech.calls() && speech.reasoning_tokens() == 0);
            }
        }
    }

    #[test]
    fn a_text_that_never_decides_itself_is_said() {
        let tags = ThinkTags { open: "<think>", close: "</think>" };
        let calling = Calling { format: CallFormat::Hermes, functions: Arc::default() };
        let mut speech =
            Speech::new(Some((tags, Thinking::Possible)), Reasoning::InText, Some(calling));
        speech.hear("<thi");
        assert!(speech.say(false).is_empty());
        assert_eq!(speech.say(true), [Said::Text("<thi".into())]);
    }
}
