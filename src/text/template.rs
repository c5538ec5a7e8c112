//! The model's chat template, rendered as `transformers` renders it.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;

use crate::checkpoint::Checkpoint;

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
#[error("chat template: {0}")]
pub struct TemplateError(String);

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
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
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        // A hostile template must end.
        environment.set_recursion_limit(64);
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|e| TemplateError(e.to_string()))?;
        Ok(Self { environment, bos_token: bos_token.into(), eos_token: eos_token.into() })
    }

    /// The template of a model, with its special tokens; `None` where it has none.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, TemplateError> {
        let Some(source) = &checkpoint.chat_template else { return Ok(None) };
        let text = |id: Option<u32>| {
            id.and_then(|id| checkpoint.tokenizer.as_ref()?.id_to_token(id)).unwrap_or_default()
        };
        let config = &checkpoint.config;
        let (bos, eos) = (config.bos_token_id, config.eos_token_ids.first().copied());
        Self::new(source, &text(bos), &text(eos)).map(Some)
    }

    /// The prompt of a conversation, ending where the assistant is to speak.
    ///
    /// # Errors
    /// [`TemplateError`] with the template's own objection.
    pub fn render(&self, messages: &[Value]) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").expect("added when it was made");
        template
            .render(context! {
                messages => minijinja::value::Serde(messages),
                add_generation_prompt => true,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
            .map_err(|e| TemplateError(e.detail().map_or_else(|| e.to_string(), str::to_owned)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_methods_and_raised_errors_work() {
        let template = ChatTemplate::new(
            "{{ bos_token }}{% for m in messages %}\n{% if m['role'].startswith('x') %}\n{{ raise_exception('no x') }}\
             {% endif %}[{{ m.content.strip() }}]{% endfor %}",
            "<s>",
            "</s>",
        )
        .unwrap();
        let ok = [serde_json::json!({"role": "user", "content": " hi "})];
        assert_eq!(template.render(&ok).unwrap(), "<s>[hi]");
        let bad = [serde_json::json!({"role": "x", "content": ""})];
        assert!(template.render(&bad).unwrap_err().to_string().contains("no x"));
        assert!(ChatTemplate::new("{% if %}", "", "").is_err());
    }

    #[test]
    fn templates_know_the_date() {
        let render = |source| ChatTemplate::new(source, "", "").unwrap().render(&[]);
        let year: i16 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
        assert!((2026..3000).contains(&year));
        assert!(render("{{ strftime_now('%!') }}").is_err());
    }
}
