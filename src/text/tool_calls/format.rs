//! How models write calls: what stands around names and arguments.

use std::str::FromStr;

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>` around `<function=NAME>` and elements `<parameter=NAME>`: Qwen3-Coder.
    Qwen3Coder,
    /// `<｜tool▁calls▁begin｜>`, and for each call its kind, a name and a code block of JSON: DeepSeek-V3.
    DeepSeekV3,
    /// `<｜tool▁calls▁begin｜>`, and for each call a name and JSON: DeepSeek-V3.1.
    DeepSeekV31,
    /// `<tool_call>` around an object: Hermes, Qwen, and any model whose prompt describes this format.
    Hermes,
    /// An object with `parameters`, alone, or between marks: Llama 3 and 4.
    Llama3Json,
    /// A Python list of calls `name(argument=value)`, alone, and perhaps between marks, where objects with `parameters` may
    /// stand in its place: Llama 3.2 and 4, Gemma 3.
    Pythonic,
    /// `[TOOL_CALLS]` and a list of objects: Mistral.
    Mistral,
    /// `[TOOL_CALLS]`, a name, `[ARGS]` and its arguments, for each call: later Mistral models.
    MistralArgs,
}

/// How arguments are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// As a JSON object.
    Json,
    /// As elements `<parameter=NAME>`, with texts as they are and other values as JSON.
    Xml,
    /// As Python's keyword arguments, with JSON in place of what is neither a constant nor a text.
    Python,
}

/// The texts of a format. An answer that calls is `trigger head call (between call)* tail`, perhaps between the
/// marks of `around`, and a call is `opening` name `arguments` arguments `closing`.
#[derive(Debug)]
pub struct Texts {
    /// What comes before the first call, often a special token; a format without any has calls in place of
    /// all text.
    pub trigger: &'static str,
    /// What follows the trigger.
    pub head: &'static str,
    /// What comes before a function's name.
    pub opening: &'static str,
    /// What stands between name and arguments.
    pub arguments: &'static str,
    /// How the arguments are written.
    pub syntax: Syntax,
    /// What comes after the arguments.
    pub closing: &'static str,
    /// What stands between calls.
    pub between: &'static str,
    /// What comes after the last call.
    pub tail: &'static str,
    /// What some models write before and after all that; only of a format without a trigger.
    pub around: Option<Around>,
}

/// What may stand around calls.
#[derive(Debug, Clone, Copy)]
pub struct Around {
    /// What comes before and after them, often special tokens.
    pub marks: [&'static str; 2],
    /// How calls may be written between them besides.
    pub also: Option<&'static Texts>,
}

/// Llama 4's special tokens around calls.
const PYTHON: [&str; 2] = ["<|python_start|>", "<|python_end|>"];

static LLAMA_3_JSON: Texts = Texts {
    trigger: "",
    head: "",
    opening: "{\"name\": \"",
    arguments: "\", \"parameters\": ",
    syntax: Syntax::Json,
    closing: "}",
    between: "; ",
    tail: "",
    around: Some(Around { marks: PYTHON, also: None }),
};

static PYTHONIC: Texts = Texts {
    trigger: "",
    head: "[",
    opening: "",
    arguments: "(",
    syntax: Syntax::Python,
    closing: ")",
    between: ", ",
    tail: "]",
    around: Some(Around { marks: PYTHON, also: Some(&LLAMA_3_JSON) }),
};

impl CallFormat {
    /// All formats.
    pub const ALL: [Self; 8] = [
        Self::Qwen3Coder,
        Self::Pythonic,
        Self::DeepSeekV3,
        Self::DeepSeekV31,
        Self::Hermes,
        Self::Llama3Json,
        Self::MistralArgs,
        Self::Mistral,
    ];

    /// Its name, which is vLLM's but for `mistral_args`: vLLM tells both of Mistral's apart by the tokenizer.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qwen3Coder => "qwen3_coder",
            Self::DeepSeekV3 => "deepseek_v3",
            Self::DeepSeekV31 => "deepseek_v31",
            Self::Hermes => "hermes",
            Self::Pythonic => "pythonic",
            Self::Llama3Json => "llama3_json",
            Self::Mistral => "mistral",
            Self::MistralArgs => "mistral_args",
        }
    }

    /// The format in which a chat template writes calls, or tells the model to, if it is known.
    #[must_use]
    pub(in crate::text) fn of_template(source: &str) -> Option<Self> {
        let marks = |format: Self| match format {
            Self::Qwen3Coder => ["<function=", "<parameter="],
            Self::Pythonic => ["[func_name1(", "func_name2("],
            Self::DeepSeekV3 => ["<｜tool▁calls▁begin｜>", "```json"],
            Self::DeepSeekV31 => ["<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"],
            Self::Hermes => ["<tool_call>", "\"arguments\""],
            Self::Llama3Json => ["{\"name\": \"", "\"parameters\": "],
            Self::Mistral => ["[TOOL_CALLS]", "[AVAILABLE_TOOLS]"],
            Self::MistralArgs => ["[TOOL_CALLS]", "[ARGS]"],
        };
        // Some Mistral models write an id between name and arguments.
        let known = !source.contains("[CALL_ID]");
        let fits = |format: &Self| marks(*format).iter().all(|mark| source.contains(mark));
        Self::ALL.into_iter().find(fits).filter(|_| known)
    }

    /// The texts around names and arguments.
    #[must_use]
    pub const fn texts(self) -> &'static Texts {
        match self {
            Self::Qwen3Coder => &Texts {
                trigger: "<tool_call>",
                head: "",
                opening: "\n<function=",
                arguments: ">\n",
                syntax: Syntax::Xml,
                closing: "</function>\n</tool_call>",
                between: "\n<tool_call>",
                tail: "",
                around: None,
            },
            Self::DeepSeekV3 => &Texts {
                trigger: "<｜tool▁calls▁begin｜>",
                head: "",
                opening: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                arguments: "\n```json\n",
                syntax: Syntax::Json,
                closing: "\n```<｜tool▁call▁end｜>",
                between: "\n",
                tail: "<｜tool▁calls▁end｜>",
                around: None,
            },
            Self::DeepSeekV31 => &Texts {
                trigger: "<｜tool▁calls▁begin｜>",
                head: "",
                opening: "<｜tool▁call▁begin｜>",
                arguments: "<｜tool▁sep｜>",
                syntax: Syntax::Json,
                closing: "<｜tool▁call▁end｜>",
                between: "",
                tail: "<｜tool▁calls▁end｜>",
                around: None,
            },
            Self::Hermes => &Texts {
                trigger: "<tool_call>",
                head: "",
                opening: "\n{\"name\": \"",
                arguments: "\", \"arguments\": ",
                syntax: Syntax::Json,
                closing: "}\n</tool_call>",
                between: "\n<tool_call>",
                tail: "",
                around: None,
            },
            Self::Pythonic => &PYTHONIC,
            Self::Llama3Json => &LLAMA_3_JSON,
            Self::Mistral => &Texts {
                trigger: "[TOOL_CALLS]",
                head: "[",
                opening: "{\"name\": \"",
                arguments: "\", \"arguments\": ",
                syntax: Syntax::Json,
                closing: "}",
                between: ", ",
                tail: "]",
                around: None,
            },
            Self::MistralArgs => &Texts {
                trigger: "[TOOL_CALLS]",
                head: "",
                opening: "",
                arguments: "[ARGS]",
                syntax: Syntax::Json,
                closing: "",
                between: "[TOOL_CALLS]",
                tail: "",
                around: None,
            },
        }
    }

    /// Parts of those texts that tokenizers may have as special tokens.
    #[must_use]
    pub const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Qwen3Coder | Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::DeepSeekV3 | Self::DeepSeekV31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
            Self::Pythonic | Self::Llama3Json => &PYTHON,
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::MistralArgs => &["[TOOL_CALLS]", "[ARGS]"],
        }
    }
}

impl FromStr for CallFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

impl std::fmt::Display for CallFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_templates() {
        let qwen = "{% if tools %}<tool_call>{\"name\": <name>, \"arguments\": <arguments>}";
        let coder = "{% if tools %}<tool_call>\n<function=f>\n<parameter=p>\nvalue\n</parameter> {\"arguments\"";
        let python =
            "{% if tools %}Use [func_name1(param1=value1), func_name2(...)]{{ '{\"name\": \"' }}";
        let deepseek = "{% for m in messages %}<｜tool▁calls▁begin｜><｜tool▁sep｜>";
        let llama = "{% if tools %}{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}";
        let mistral = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]";
        for (source, format) in [
            (coder, Some(CallFormat::Qwen3Coder)),
            (python, Some(CallFormat::Pythonic)),
            (&format!("{deepseek}```json"), Some(CallFormat::DeepSeekV3)),
            (deepseek, Some(CallFormat::DeepSeekV31)),
            (qwen, Some(CallFormat::Hermes)),
            (llama, Some(CallFormat::Llama3Json)),
            (mistral, Some(CallFormat::Mistral)),
            (&format!("{mistral}[ARGS]"), Some(CallFormat::MistralArgs)),
            (&format!("{mistral}[CALL_ID][ARGS]"), None),
            ("{% for m in messages %}", None),
        ] {
            assert_eq!(CallFormat::of_template(source), format, "{source}");
        }
        assert_eq!("mistral".parse(), Ok(CallFormat::Mistral));
        assert_eq!("mistral_args".parse(), Ok(CallFormat::MistralArgs));
        assert!("xml".parse::<CallFormat>().unwrap_err().contains("llama3_json"));
    }
}
