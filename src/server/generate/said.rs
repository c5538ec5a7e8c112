//! What the model says, in no API's shape.

/// What the model says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// More of its reasoning, which comes before all else.
    Reasoning(String),
    /// More text.
    Text(String),
    /// The beginning of a call of a function.
    Call {
        /// Ties the result to the call.
        id: String,
        /// The function.
        name: String,
    },
    /// More of the arguments of the last call, which are the text of a JSON object.
    Arguments(String),
}

/// All that the model says in one choice.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
}

/// A call of a function.
#[derive(Debug)]
pub(crate) struct Call {
    /// Ties the result to the call.
    pub(crate) id: String,
    /// The function.
    pub(crate) name: String,
    /// The text of a JSON object, which is cut where the tokens ran out.
    pub(crate) arguments: String,
}

impl Message {
    /// Adds what comes next.
    pub(crate) fn add(&mut self, said: Said) {
        match said {
            Said::Reasoning(more) => self.reasoning += &more,
            Said::Text(more) => self.text += &more,
            Said::Call { id, name } => {
                self.calls.push(Call { id, name, arguments: String::new() });
            }
            Said::Arguments(more) => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments += &more;
                }
            }
        }
    }

    /// The text, which is absent where there are calls alone.
    pub(crate) fn content(&mut self) -> Option<String> {
        let text = std::mem::take(&mut self.text);
        Some(text).filter(|text| !text.is_empty() || self.calls.is_empty())
    }
}
