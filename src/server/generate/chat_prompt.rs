//! A conversation as every API's request is read into it, on its way to be a prompt.

use serde_json::{Map, Value, json};

use super::generation::Generation;
use super::running::Prepared;
use super::tool_calls::Calling;
use crate::server::error::ApiError;
use crate::server::request::dialect::Dialect;
use crate::server::request::functions::Callable;
use crate::server::request::thinking;
use crate::server::serving::Serving;
use crate::text::{CallFormat, ChatTemplate, Ending, ThinkTags, Thinking};

/// A conversation, and what the model may call in its answer.
pub(crate) struct ChatPrompt {
    pub(crate) messages: Vec<PromptMessage>,
    pub(crate) ending: Ending,
    pub(crate) callable: Option<Callable>,
    /// Further variables of the chat template.
    pub(crate) variables: Map<String, Value>,
}

/// One message of a conversation. A `name` says who speaks, where several play a role.
pub(crate) enum PromptMessage {
    /// The instructions.
    System { text: String, name: Option<String> },
    /// What the user says.
    User { text: String, name: Option<String> },
    /// What the assistant thought, said and called.
    Assistant {
        reasoning: Option<String>,
        text: String,
        name: Option<String>,
        calls: Vec<PastCall>,
    },
    /// What a function gave back to the call `call_id`.
    Result { text: String, name: Option<String>, call_id: String },
}

/// A call that the assistant made.
pub(crate) struct PastCall {
    /// Ties the result to the call.
    pub(crate) id: String,
    /// The function.
    pub(crate) name: String,
    /// An object; a text where the client's was no JSON.
    pub(crate) arguments: Value,
}

impl ChatPrompt {
    /// The prompt that answers are generated to, and their grammar where they may call functions.
    ///
    /// # Errors
    /// The field of `dialect` that is at fault.
    pub(crate) fn prepare(
        self,
        serving: &Serving,
        mut generation: Generation,
        dialect: Dialect,
    ) -> Result<Prepared, ApiError> {
        let prompt = self.text(serving, dialect)?;
        generation.thinking = self.thinking(serving, &prompt);
        let tags = generation.thinking.map(|(tags, _)| tags);
        if let Some(callable) = &self.callable {
            let format = self.template(serving).map_or(CallFormat::Hermes, ChatTemplate::calls);
            let marks = serving.marks(format.marks());
            let form = generation.grammar.take();
            let grammar = callable.grammar(format, &marks, form.clone(), tags.map(|it| it.open))?;
            generation.grammar = Some(("tools", grammar));
            generation.form = form.filter(|_| callable.may_speak());
            generation.calls = Some(Calling { format, functions: callable.signatures() });
        }
        if let Some((tags, thinking)) = generation.thinking
            && let Some((_, grammar)) = &mut generation.grammar
        {
            let marks = serving.marks(&[tags.open, tags.close]);
            *grammar = thinking::before(grammar.clone(), (tags, thinking), &marks);
        }
        let prompts = vec![serving.encode(dialect.prompt, &prompt, false)?];
        Ok(Prepared { generation, prompts, dialect })
    }

    /// How an answer to the conversation reasons before it begins, where it may; `prompt` is its text.
    fn thinking(&self, serving: &Serving, prompt: &str) -> Option<(ThinkTags, Thinking)> {
        let tags = self.template(serving)?.think_tags()?;
        let thinking = match (self.ending, self.messages.last()) {
            (Ending::LastMessage, Some(PromptMessage::Assistant { text, .. })) => {
                tags.after_words(text)
            }
            _ => tags.after_prompt(prompt),
        };
        Some((tags, thinking?))
    }

    /// The prompt's tokens.
    pub(crate) fn tokens(&self, serving: &Serving, dialect: Dialect) -> Result<Vec<u32>, ApiError> {
        serving.encode(dialect.prompt, &self.text(serving, dialect)?, false)
    }

    /// The model's chat template for the conversation, where it has one.
    fn template<'a>(&self, serving: &'a Serving) -> Option<&'a ChatTemplate> {
        Some(serving.template.as_ref()?.of(self.callable.is_some()))
    }

    /// The prompt's text, as the model's chat template has it.
    pub(crate) fn text(&self, serving: &Serving, dialect: Dialect) -> Result<String, ApiError> {
        let field = dialect.prompt;
        let template = self.template(serving).ok_or_else(|| {
            let message = "this model has no chat template; use /v1/completions, or `prompt`";
            ApiError::invalid(field, message)
        })?;
        if self.messages.is_empty() {
            return Err(ApiError::invalid(field, format!("`{field}` must not be empty")));
        }
        let messages: Vec<Value> = self.messages.iter().map(PromptMessage::template).collect();
        let tools = self.callable.as_ref().map_or(&[][..], |callable| &callable.rendered);
        let text = template.render_to(self.ending, &messages, tools, &self.variables);
        text.map_err(|e| ApiError::invalid(field, e.to_string()))
    }
}

impl PromptMessage {
    /// What the user says, without a name.
    pub(crate) fn user(text: String) -> Self {
        Self::User { text, name: None }
    }

    /// The message as chat templates read it.
    fn template(&self) -> Value {
        let (role, text, name) = match self {
            Self::System { text, name } => ("system", text, name),
            Self::User { text, name } => ("user", text, name),
            Self::Assistant { text, name, .. } => ("assistant", text, name),
            Self::Result { text, name, .. } => ("tool", text, name),
        };
        let mut message = Map::new();
        let mut set = |field: &str, value: Value| drop(message.insert(field.into(), value));
        set("role", role.into());
        set("content", text.as_str().into());
        if let Some(name) = name {
            set("name", name.as_str().into());
        }
        match self {
            Self::System { .. } | Self::User { .. } => {}
            Self::Assistant { reasoning, calls, .. } => {
                if let Some(reasoning) = reasoning {
                    set("reasoning_content", reasoning.as_str().into());
                }
                if !calls.is_empty() {
                    set("tool_calls", calls.iter().map(PastCall::template).collect());
                }
            }
            Self::Result { call_id, .. } => set("tool_call_id", call_id.as_str().into()),
        }
        message.into()
    }
}

impl PastCall {
    /// A call whose arguments are the text of a JSON object.
    pub(crate) fn new(id: String, name: String, arguments: String) -> Self {
        let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
        Self { id, name, arguments }
    }

    fn template(&self) -> Value {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": self.id, "type": "function", "function": function})
    }
}
