//! The calls of functions that an answer makes, found in its text.

use super::said::Said;
use crate::text::CallFormat;
use crate::text::tool_calls::{CallParser, Part, Signatures};

/// How an answer calls functions.
#[derive(Debug, Clone)]
pub(crate) struct Calling {
    /// The format in which calls are written.
    pub(crate) format: CallFormat,
    /// The functions.
    pub(crate) functions: Signatures,
}

/// The calls of one choice, as its text grows.
pub(crate) struct Calls {
    format: CallFormat,
    parser: CallParser,
    /// Calls begun.
    pub(crate) begun: usize,
}

impl Calls {
    /// Of a choice that may call functions.
    pub(crate) fn new(Calling { format, functions }: Calling) -> Self {
        Self { format, parser: CallParser::new(format, functions), begun: 0 }
    }

    /// Whether there are calls, and the last one is whole.
    pub(crate) fn are_whole(&self) -> bool {
        self.begun > 0 && !self.parser.in_call()
    }

    /// What a piece of text says: text, then calls. The last piece gets what is left.
    pub(crate) fn push(&mut self, piece: &str, last: bool) -> Vec<Said> {
        let mut parts = self.parser.push(piece);
        if last {
            parts.extend(self.parser.finish());
        }
        let (mut text, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match (part, calls.last_mut()) {
                (Part::Text(more), _) => text += &more,
                (Part::Call(name), _) => {
                    calls.push(Said::Call { id: new_id(self.format), name });
                    self.begun += 1;
                }
                (Part::Arguments(more), Some(Said::Arguments(arguments))) => *arguments += &more,
                (Part::Arguments(more), _) => calls.push(Said::Arguments(more)),
            }
        }
        let text = Some(text).filter(|text| !text.is_empty()).map(Said::Text);
        text.into_iter().chain(calls).collect()
    }
}

fn new_id(format: CallFormat) -> String {
    match format {
        // The only form that Mistral's templates take.
        CallFormat::Mistral | CallFormat::MistralArgs => {
            (0..9).map(|_| fastrand::alphanumeric()).collect()
        }
        _ => format!("call_{}", uuid::Uuid::new_v4().simple()),
    }
}
