//! GGUF files made of folders, and their metadata changed in place: for files as other programs write them.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "support of tests")]

use std::path::Path;

use pleach::checkpoint::write::{Meta, gguf_file};
use pleach::checkpoint::{Checkpoint, RawTensor};
use pleach::model::tensor_names;

/// Writes all tensors of a folder as a GGUF file, with `more` metadata.
pub fn convert(folder: &Path, path: &Path, more: &[(&str, Meta)]) {
    write_changed(&mut Checkpoint::open(folder).unwrap(), path, more, |_, tensor| tensor);
}

/// The same of a checkpoint, each tensor as `change` makes it.
pub fn write_changed(
    checkpoint: &mut Checkpoint,
    path: &Path,
    more: &[(&str, Meta)],
    change: impl Fn(&str, RawTensor) -> RawTensor,
) {
    let mut names = tensor_names(&checkpoint.config, |name| checkpoint.has(name));
    let ends = ["model.embed_tokens.weight", "lm_head.weight"];
    names.extend(ends.into_iter().filter(|name| checkpoint.has(name)).map(str::to_owned));
    let tensors: Vec<_> = names
        .into_iter()
        .map(|name| {
            let tensor = change(&name, checkpoint.tensor(&name).unwrap());
            (name, tensor)
        })
        .collect();
    gguf_file(path, "tiny", &checkpoint.config, more, &tensors).unwrap();
}

/// A metadata value of a file that another program wrote.
pub enum Foreign<'a> {
    Number(u32),
    Float(f32),
    Bool(bool),
    Text(&'a str),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
    Floats(Vec<f32>),
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, key: &str, value: &Foreign) {
    put_text(out, key);
    let id = |out: &mut Vec<u8>, ids: &[u32]| {
        ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
    };
    match value {
        Foreign::Number(value) => {
            id(out, &[4]);
            out.extend(value.to_le_bytes());
        }
        Foreign::Float(value) => {
            id(out, &[6]);
            out.extend(value.to_le_bytes());
        }
        Foreign::Bool(value) => {
            id(out, &[7]);
            out.push(u8::from(*value));
        }
        Foreign::Text(text) => {
            id(out, &[8]);
            put_text(out, text);
        }
        Foreign::Texts(texts) => {
            id(out, &[9, 8]);
            out.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Foreign::Floats(values) => {
            id(out, &[9, 6]);
            out.extend((values.len() as u64).to_le_bytes());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Foreign::Numbers(values) => {
            id(out, &[9, 5]);
            out.extend((values.len() as u64).to_le_bytes());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}

/// Adds metadata to a file.
pub fn add(path: &Path, values: &[(&str, Foreign)]) {
    let mut bytes = std::fs::read(path).unwrap();
    let mut more = Vec::new();
    for (key, value) in values {
        put(&mut more, key, value);
    }
    // Tensors begin at multiples of 32 bytes: one value more fills what is missing.
    let key = "test.padding";
    let bare = 8 + key.len() + 4 + 8;
    let padding = (more.len() + bare).next_multiple_of(32) - more.len() - bare;
    put(&mut more, key, &Foreign::Text(&"x".repeat(padding)));
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + values.len() as u64 + 1;
    bytes[16..24].copy_from_slice(&count.to_le_bytes());
    bytes.splice(24..24, more);
    std::fs::write(path, bytes).unwrap();
}

/// A tensor as another program writes it: its name, the number of its type, its shape with rows first, and its bytes.
pub type ForeignTensor = (String, u32, Vec<usize>, Vec<u8>);

/// Writes a file as other programs do.
pub fn write(path: &Path, values: &[(&str, Foreign)], tensors: &[ForeignTensor]) {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|(key, value)| put(&mut bytes, key, value));
    let mut offset = 0u64;
    for (name, kind, shape, data) in tensors {
        put_text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += data.len().next_multiple_of(32) as u64;
    }
    for (.., data) in tensors {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
    }
    std::fs::write(path, bytes).unwrap();
}

/// What describes a Llama model with this vocabulary, 4 heads, 2 of them of keys, and these widths and blocks.
pub fn llama(
    vocab: u32,
    hidden: u32,
    inner: u32,
    blocks: u32,
) -> Vec<(&'static str, Foreign<'static>)> {
    vec![
        ("general.architecture", Foreign::Text("llama")),
        ("llama.block_count", Foreign::Number(blocks)),
        ("llama.context_length", Foreign::Number(64)),
        ("llama.embedding_length", Foreign::Number(hidden)),
        ("llama.feed_forward_length", Foreign::Number(inner)),
        ("llama.attention.head_count", Foreign::Number(4)),
        ("llama.attention.head_count_kv", Foreign::Number(2)),
        ("llama.attention.layer_norm_rms_epsilon", Foreign::Float(1e-5)),
        ("llama.vocab_size", Foreign::Number(vocab)),
        ("tokenizer.ggml.eos_token_id", Foreign::Number(2)),
    ]
}

/// Whether a file has a key or a tensor of this name.
pub fn has(path: &Path, name: &str) -> bool {
    std::fs::read(path).unwrap().windows(name.len()).any(|window| window == name.as_bytes())
}

/// Gives a key or a tensor another name of the same length, as if it were not there.
pub fn hide(path: &Path, name: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {name}"));
    bytes[at + name.len() - 1] = b'_';
    std::fs::write(path, bytes).unwrap();
}

/// The 96 tokens of a byte-level vocabulary without merges, and two special tokens in place of the last.
pub fn letters() -> Vec<String> {
    let letters = ('!'..='~').map(String::from).chain(["Ġ".to_owned(), "Ċ".to_owned()]);
    let mut tokens: Vec<String> = letters.collect();
    tokens.truncate(96);
    (tokens[1], tokens[2]) = ("<|start|>".into(), "<|end|>".into());
    tokens
}

/// Such a vocabulary as `tokenizer.json`.
pub fn letters_json() -> String {
    let vocab: serde_json::Map<_, _> =
        letters().into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let special = |id: usize, content: &str| {
        serde_json::json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(1, "<|start|>"), special(2, "<|end|>")],
        "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
    .to_string()
}

/// A template that ends every message with a special token.
pub const TEMPLATE: &str = "{% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}<|end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}";

/// Gives a GGUF file that vocabulary.
pub fn add_letters(path: &Path) {
    let tokens = letters();
    let kinds = (0..tokens.len()).map(|id| if id == 1 || id == 2 { 3 } else { 1 }).collect();
    add(
        path,
        &[
            ("tokenizer.ggml.model", Foreign::Text("gpt2")),
            ("tokenizer.ggml.pre", Foreign::Text("gpt-2")),
            ("tokenizer.ggml.tokens", Foreign::Texts(tokens)),
            ("tokenizer.ggml.token_type", Foreign::Numbers(kinds)),
            ("tokenizer.ggml.merges", Foreign::Texts(Vec::new())),
            ("tokenizer.chat_template", Foreign::Text(TEMPLATE)),
        ],
    );
}
