//! Arguments that are Python's keyword arguments.

use serde::de::IgnoredAny;
use serde_json::json;

use super::json::escaped;

/// Keyword arguments that arrive in pieces.
#[derive(Debug)]
pub(super) struct Keywords {
    place: Place,
    /// A name, number or constant that may go on.
    word: String,
    /// Brackets that are open within a value.
    open: Vec<char>,
    /// Whether another item of a list or dictionary may follow.
    comma: bool,
    /// Arguments begun.
    begun: usize,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Start,
    Name,
    Value,
    /// Within a string that this character ends.
    String(char),
    /// Behind a backslash in it.
    Escape(char),
    /// Within the digits of a character's code, of which so many are to come.
    Code(char, u8, u32),
}

impl Keywords {
    pub(super) fn new() -> Self {
        let (word, open) = (String::new(), Vec::new());
        Self { place: Place::Start, word, open, comma: false, begun: 0 }
    }

    /// Takes the held text; gives what that adds to a JSON object, and whether that is whole.
    pub(super) fn read(&mut self, held: &mut String) -> (String, bool) {
        let mut json = String::new();
        if let Place::Start = self.place {
            (self.place, json) = (Place::Name, "{".to_owned());
        }
        for (at, character) in held.char_indices() {
            self.place = match self.place {
                Place::Start | Place::Name => match character {
                    ')' => {
                        held.drain(..at);
                        return (json + "}", true);
                    }
                    '=' => {
                        json += if self.begun > 0 { ", " } else { "" };
                        json += &format!("{}: ", json!(std::mem::take(&mut self.word)));
                        self.begun += 1;
                        Place::Value
                    }
                    ',' | ' ' | '\n' | '\t' | '\r' => Place::Name,
                    other => {
                        self.word.push(other);
                        Place::Name
                    }
                },
                Place::Value if character == ')' && self.open.is_empty() => {
                    self.end_word(&mut json);
                    held.drain(..at);
                    return (json + "}", true);
                }
                Place::Value => self.value(character, &mut json),
                Place::String(end) if character == end => {
                    json.push('"');
                    Place::Value
                }
                Place::String(end) if character == '\\' => Place::Escape(end),
                Place::String(end) => {
                    json += &escaped(character.encode_utf8(&mut [0; 4]));
                    Place::String(end)
                }
                Place::Escape(end) => escape(end, character, &mut json),
                Place::Code(end, left, code) => match (character.to_digit(16), left) {
                    (Some(digit), 2..) => Place::Code(end, left - 1, (code << 4) | digit),
                    (digit, _) => {
                        json += &code_text((code << 4) | digit.unwrap_or(0));
                        Place::String(end)
                    }
                },
            };
        }
        held.clear();
        (json, false)
    }

    /// Takes a character of a value outside of strings.
    fn value(&mut self, character: char, json: &mut String) -> Place {
        if " \n\t\r,:=[](){}'\"".contains(character) {
            self.end_word(json);
        }
        match character {
            '"' | '\'' => {
                self.item(json);
                json.push('"');
                return Place::String(character);
            }
            '[' | '(' | '{' => {
                self.item(json);
                json.push(if character == '{' { '{' } else { '[' });
                self.open.push(character);
            }
            ']' | ')' | '}' => {
                self.comma = false;
                json.push(if self.open.pop() == Some('{') { '}' } else { ']' });
            }
            ',' if self.open.is_empty() => return Place::Name,
            ',' => self.comma = true,
            ':' => *json += ": ",
            ' ' | '\n' | '\t' | '\r' => {}
            other => self.word.push(other),
        }
        Place::Value
    }

    /// Writes the comma that stands before an item.
    fn item(&mut self, json: &mut String) {
        *json += if std::mem::take(&mut self.comma) { ", " } else { "" };
    }

    /// Writes the word that has ended, if there is one: a constant, a number, or else a text.
    fn end_word(&mut self, json: &mut String) {
        let word = std::mem::take(&mut self.word);
        if word.is_empty() {
            return;
        }
        self.item(json);
        *json += &match &*word {
            "True" => "true".to_owned(),
            "False" => "false".to_owned(),
            "None" => "null".to_owned(),
            _ if serde_json::from_str::<IgnoredAny>(&word).is_ok() => word,
            _ => json!(word).to_string(),
        };
    }
}

/// Takes the character behind a backslash.
fn escape(end: char, character: char, json: &mut String) -> Place {
    let text = match character {
        'n' => "\n",
        't' => "\t",
        'r' => "\r",
        'b' => "\u{8}",
        'f' => "\u{c}",
        'a' => "\u{7}",
        'v' => "\u{b}",
        '0' => "\0",
        '\n' => "",
        'x' => return Place::Code(end, 2, 0),
        'u' => return Place::Code(end, 4, 0),
        'U' => return Place::Code(end, 8, 0),
        '\\' => "\\",
        '\'' => "'",
        '"' => "\"",
        '/' => "/",
        other => {
            *json += &escaped(&format!("\\{other}"));
            return Place::String(end);
        }
    };
    *json += &escaped(text);
    Place::String(end)
}

/// The character of a code within a JSON string; one half of a pair stays one.
fn code_text(code: u32) -> String {
    match char::from_u32(code) {
        Some(character) => escaped(&character.to_string()),
        None if code <= 0xffff => format!("\\u{code:04x}"),
        None => "\u{fffd}".to_owned(),
    }
}
