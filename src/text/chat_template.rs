//! The model's chat template, rendered as `transformers` renders it.

use std::collections::BTreeMap;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::tool_prompt::{arguments_as_texts, describe_tools, without_system};
use super::{CallFormat, JsonStyle, ThinkTags, python_json};

/// Instructions that rendering may take: about a second's worth.
const FUEL: u64 = 20_000_000;
/// Bytes that a prompt may have: more than any request.
const MAX_PROMPT: usize = 32 << 20;

/// Marks, while a prompt is rendered, where its last message goes on.
const GOES_ON: &str = "\u{f8ff}goes on\u{f8ff}";

/// Variables of a template that the conversation itself sets.
const CONVERSATION: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
#[error("chat template: {0}")]
pub struct TemplateError(String);

/// How a prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Where the assistant is to speak.
    Assistant,
    /// Where the conversation does.
    Conversation,
    /// Within the last message, which goes on.
    LastMessage,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Texts of the special tokens, by role.
    special_tokens: BTreeMap<String, String>,
    /// Further variables, such as `enable_thinking`.
    variables: Map<String, Value>,
    /// How calls of functions are written.
    calls: CallFormat,
    /// Whether the template describes functions and writes their calls itself.
    knows_calls: bool,
    /// Whether it takes the arguments of calls as texts.
    joins_arguments: bool,
    /// What the model's reasoning stands between, where the template knows of any.
    think_tags: Option<ThinkTags>,
    /// The template of conversations with functions, where it is another one.
    tool_use: Option<Box<Self>>,
}

impl ChatTemplate {
    /// Compiles a Jinja template.
    ///
    /// # Errors
    /// [`TemplateError`] with the place of the fault.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TemplateError(e.to_string()))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // minijinja's own writes JSON for HTML.
        environment.add_filter("tojson", |value: minijinja::Value, options: Kwargs| {
            let style = JsonStyle {
                indent: options.get("indent")?,
                separators: separators(options.get("separators")?)?,
                sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
                ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            };
            options.assert_all_used()?;
            Ok::<_, Error>(style.write(&value))
        });
        // minijinja's own takes nothing for an empty list.
        environment.add_test("iterable", |value: &minijinja::Value| {
            !value.is_none() && value.try_iter().is_ok()
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        // A hostile template must end.
        environment.set_recursion_limit(64);
        environment.set_fuel(Some(FUEL));
        environment
            .add_template_owned("chat", without_generation(source))
            .map_err(|e| TemplateError(e.to_string()))?;
        let known = CallFormat::of_template(source);
        let (calls, knows_calls) = (known.unwrap_or(CallFormat::Hermes), known.is_some());
        let knows_calls = knows_calls && source.contains("tools");
        let special_tokens = [("bos_token", bos_token), ("eos_token", eos_token)];
        let special_tokens =
            special_tokens.map(|(role, text)| (role.to_owned(), text.to_owned())).into();
        let (variables, think_tags) = (Map::new(), ThinkTags::of_template(source));
        let joins_arguments = false;
        let template = Self {
            environment,
            special_tokens,
            variables,
            calls,
            knows_calls,
            joins_arguments,
            think_tags,
            tool_use: None,
        };
        Ok(template.with_arguments())
    }

    /// Sets the format in which the model writes calls, whether its template shows it or not.
    #[must_use]
    pub fn with_calls(mut self, format: CallFormat) -> Self {
        let template = self.environment.get_template("chat").expect("added when it was made");
        self.knows_calls = template.source().contains("tools");
        (self.calls, self.joins_arguments) = (format, false);
        self.tool_use = self.tool_use.map(|template| Box::new(template.with_calls(format)));
        self.with_arguments()
    }

    /// Sets another template for conversations with functions.
    #[must_use]
    pub fn with_tool_use(self, template: Self) -> Self {
        Self { tool_use: Some(Box::new(template)), ..self }
    }

    /// The template of conversations with functions, or of those without, which are one as a rule.
    #[must_use]
    pub fn of(&self, functions: bool) -> &Self {
        self.tool_use.as_deref().filter(|_| functions).unwrap_or(self)
    }

    /// Finds out how the template takes the arguments of calls, which it gets as objects until then: as texts where it
    /// does not write an object's fields in its own way, and does write a text.
    fn with_arguments(mut self) -> Self {
        let object = json!({"its_field": "its_value", "none": null});
        let text = python_json(&object);
        let prompt = |arguments: Value| {
            let function = json!({"name": "f", "arguments": arguments});
            let call = json!({"id": "call00000", "type": "function", "function": function});
            let messages = [
                json!({"role": "user", "content": "f"}),
                json!({"role": "assistant", "content": "", "tool_calls": [call]}),
                json!({"role": "tool", "content": "f", "tool_call_id": "call00000"}),
            ];
            let tool = json!({"type": "function", "function": {"name": "f", "description": "",
                "parameters": {"type": "object", "properties": {}}}});
            self.render_to(Ending::Conversation, &messages, &[tool], &Map::new())
        };
        // What the engine makes of an object that is written as it is.
        let raw = minijinja::Value::from(minijinja::value::Serde(&object)).to_string();
        let writes_fields = |prompt: String| {
            ["its_field", "its_value"].iter().all(|part| prompt.contains(part))
                && !prompt.contains(&raw)
        };
        self.joins_arguments = self.knows_calls
            && !prompt(object).is_ok_and(writes_fields)
            && prompt(text.clone().into()).is_ok_and(|prompt| prompt.contains(&text));
        self
    }

    /// How calls of functions are written.
    #[must_use]
    pub fn calls(&self) -> CallFormat {
        self.calls
    }

    /// What the model's reasoning stands between, where the template knows of any.
    #[must_use]
    pub fn think_tags(&self) -> Option<ThinkTags> {
        self.think_tags
    }

    /// Adds special tokens, by the roles under which the template knows them.
    #[must_use]
    pub fn with_special_tokens(mut self, tokens: &BTreeMap<String, String>) -> Self {
        self.special_tokens.extend(tokens.clone());
        self
    }

    /// Sets variables for every conversation; those of a conversation's own come before them.
    #[must_use]
    pub fn with_variables(mut self, variables: Map<String, Value>) -> Self {
        let set = |template: Box<Self>| Box::new(template.with_variables(variables.clone()));
        self.tool_use = self.tool_use.map(set);
        self.variables = variables;
        self
    }

    /// Checks the names of variables.
    ///
    /// # Errors
    /// [`TemplateError`] naming one that is not free.
    pub fn check_variables(variables: &Map<String, Value>) -> Result<(), TemplateError> {
        match CONVERSATION.iter().find(|name| variables.contains_key(**name)) {
            Some(name) => Err(TemplateError(format!("`{name}` comes from the conversation"))),
            None => Ok(()),
        }
    }

    /// The special token that follows an assistant's message, where one does.
    #[must_use]
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let say = |role, content| serde_json::json!({"role": role, "content": content});
        let messages = [say("user", "Hi"), say("assistant", GOES_ON)];
        let text = self.render_to(Ending::Conversation, &messages, &[], &Map::new()).ok()?;
        let (_, rest) = text.rsplit_once(GOES_ON)?;
        let encoding = tokenizer.encode(rest.trim_start(), false).ok()?;
        let first = *encoding.get_ids().first()?;
        let special = tokenizer.get_added_tokens_decoder().get(&first)?.special;
        special.then_some(first)
    }

    /// The prompt of a conversation, ending where the assistant is to speak, which may call `tools`.
    /// Messages and tools are in OpenAI's shape, but contents are texts, and the arguments of calls
    /// objects. Where the template knows no calls, they are spelled out; where it refuses a system message, its words
    /// begin what the user says first.
    ///
    /// # Errors
    /// [`TemplateError`] with the template's own objection.
    pub fn render(&self, messages: &[Value], tools: &[Value]) -> Result<String, TemplateError> {
        self.render_to(Ending::Assistant, messages, tools, &Map::new())
    }

    /// The prompt of a conversation as [`render`](Self::render) writes it, with another ending and further variables.
    ///
    /// # Errors
    /// As [`render`](Self::render), or that there is nothing to go on with.
    pub fn render_to(
        &self,
        ending: Ending,
        messages: &[Value],
        tools: &[Value],
        variables: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let mut marked;
        let messages = match (ending, messages) {
            (Ending::LastMessage, [before @ .., last]) if last["tool_calls"].is_null() => {
                let said = last["content"].as_str().unwrap_or_default();
                marked = before.to_vec();
                marked.push(last.clone());
                marked[before.len()]["content"] = format!("{said}{GOES_ON}").into();
                &marked[..]
            }
            _ => messages,
        };
        let spelled = (!self.knows_calls).then(|| describe_tools(self.calls, messages, tools));
        let (messages, tools) = match &spelled {
            Some(messages) => (&messages[..], &[][..]),
            None => (messages, tools),
        };
        let joined = self.joins_arguments.then(|| arguments_as_texts(messages));
        let messages = joined.as_deref().unwrap_or(messages);
        let rendered = self.fill(ending, messages, tools, variables);
        match (&rendered, without_system(messages)) {
            (Err(_), Some(messages)) => self.fill(ending, &messages, tools, variables).or(rendered),
            _ => rendered,
        }
    }

    /// The prompt that the template makes of messages and tools as they are.
    fn fill(
        &self,
        ending: Ending,
        messages: &[Value],
        tools: &[Value],
        variables: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").expect("added when it was made");
        let mut more: BTreeMap<&str, minijinja::Value> =
            self.special_tokens.iter().map(|(role, text)| (&**role, text.into())).collect();
        for (name, value) in self.variables.iter().chain(variables) {
            more.insert(name, minijinja::value::Serde(value).into());
        }
        let conversation = context! {
            messages => minijinja::value::Serde(messages),
            tools => (!tools.is_empty()).then_some(minijinja::value::Serde(tools)),
            add_generation_prompt => ending == Ending::Assistant,
            ..minijinja::Value::from_pairs(more)
        };
        let mut prompt = BoundedText::default();
        let rendered = template.render_captured_to(conversation, &mut prompt).map(drop);
        rendered
            .map_err(|e| TemplateError(e.detail().map_or_else(|| e.to_string(), str::to_owned)))?;
        let mut prompt = String::from_utf8(prompt.0).map_err(|e| TemplateError(e.to_string()))?;
        if ending == Ending::LastMessage {
            let end = prompt.rfind(GOES_ON).ok_or_else(|| {
                TemplateError("the last message has no text to go on with".to_owned())
            })?;
            prompt.truncate(end);
        }
        Ok(prompt)
    }
}

/// The texts between things and behind keys that `tojson` is given.
fn separators(given: Option<Vec<String>>) -> Result<Option<[String; 2]>, Error> {
    let pair = given.map(<[String; 2]>::try_from).transpose();
    pair.map_err(|_| Error::new(ErrorKind::InvalidOperation, "`separators` are two texts"))
}

/// A template without the tags that mark, for training, what the assistant says: what stands between them is written
/// whatever they say.
fn without_generation(source: &str) -> String {
    let (mut plain, mut rest) = (String::with_capacity(source.len()), source);
    while let Some((block, behind)) = rest.split_once("%}") {
        let begin = block.rfind("{%").unwrap_or(block.len());
        let (before, tag) = block.split_at(begin);
        let name = tag.trim_matches(|c: char| c.is_whitespace() || "{%-+".contains(c));
        let tag = match name {
            "generation" => &tag.replace(name, "if true"),
            "endgeneration" => &tag.replace(name, "endif"),
            _ => tag,
        };
        plain.extend([before, tag, "%}"]);
        rest = behind;
    }
    plain + rest
}

/// A prompt as it is written, up to its bound.
#[derive(Default)]
struct BoundedText(Vec<u8>);

impl io::Write for BoundedText {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.0.len() + text.len() > MAX_PROMPT {
            return Err(io::Error::other("the prompt is too long"));
        }
        self.0.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
