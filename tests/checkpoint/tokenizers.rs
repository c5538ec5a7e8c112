//! Tokenizers of files: the same from a GGUF file's metadata as from `tokenizer.json`, and none that panics.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pleach::checkpoint::Checkpoint;
use serde_json::{Map, Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, Tokenizer};

use super::support::gguf::{self, Foreign};
use super::{convert, golden};

/// Texts whose words differ from one pre-tokenizer to the next.
const TEXTS: [&str; 9] = [
    "Hello world, it's 12345678 o'clock; WE'LL see 3.14159 (or 1,000,000)!",
    "  two  spaces\n\n\tand\r\n  lines \n",
    "x=1+2<3>$4^~|`code` #tag @name a_b-c",
    "naïve Größe Привет мир 你好世界 안녕하세요",
    "e\u{301}te\u{301} 🤦🏼\u{200d}♂️ … „quoted“ — dash",
    "don't DON'T I'm you've he'd we'LL",
    " leading and trailing ",
    "a1b22c333d4444 2026-07-05T12:00:00Z",
    "\u{a0}no\u{a0}break\u{3000}wide\u{2028}line",
];

fn isolated(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn sequence(parts: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

const GPT2: &str =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| \
    ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| \
    ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const TEKKEN: &str = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?\
    [\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\
    \\s+(?!\\S)|\\s+";

const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What stands in `tokenizer.json` of the models that these names of llama.cpp's stand for.
fn references() -> Vec<(&'static [&'static str], Value)> {
    let digits = |individual| json!({"type": "Digits", "individual_digits": individual});
    let punctuation = json!({"type": "Punctuation", "behavior": "Contiguous"});
    // Falcon's, which llama.cpp's default splits as, but of characters and not of bytes: there, numbers are looked for
    // among the letters that bytes are written with.
    let groups = isolated("[0-9][0-9][0-9]");
    let falcon = [punctuation, isolated(GPT2), digits(false), groups, byte_level(false)];
    vec![
        (
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
            ],
            sequence(&[isolated(LLAMA3), byte_level(false)]),
        ),
        (
            &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"],
            sequence(&[isolated(QWEN2), byte_level(false)]),
        ),
        (
            &["gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "mpt", "olmo"],
            byte_level(true),
        ),
        (
            &["smollm", "starcoder", "refact", "command-r"],
            sequence(&[digits(true), byte_level(true)]),
        ),
        (&["dbrx", "smaug-bpe"], sequence(&[isolated(LLAMA3), byte_level(false)])),
        (&["gpt-4o", "llama4", "kanana2"], sequence(&[isolated(GPT4O), byte_level(false)])),
        (&["tekken"], sequence(&[isolated(TEKKEN), byte_level(false)])),
        (&["default"], sequence(&falcon)),
    ]
}

/// All bytes, what merges make of some, and a word that no merges make.
fn vocabulary() -> (Vec<String>, Vec<String>) {
    // The letters that byte-level tokenizers write bytes with.
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut tokens: Vec<String> = (0..=255_u8)
        .filter(printable)
        .map(char::from)
        .chain((256..256 + 68).filter_map(char::from_u32))
        .map(String::from)
        .collect();
    assert_eq!(tokens.len(), 256);
    let merges = ["h e", "l l", "he ll", "Ġ w", "1 2", "12 3", "3 4", "Ġ Ġ", "' s", ", Ġ", "Ċ Ċ"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.push("hello".into());
    (tokens, merges.map(String::from).into())
}

/// A GGUF file with that vocabulary.
fn file(path: &Path, more: &[(&str, Foreign)]) {
    file_of("llama-tied", None, path, more);
}

/// The same of another model, with unused tokens up to a number of them.
fn file_of(model: &str, count: Option<usize>, path: &Path, more: &[(&str, Foreign)]) {
    let (mut tokens, merges) = vocabulary();
    let unused = tokens.len()..count.unwrap_or(0);
    tokens.extend(unused.map(|id| format!("<unused {id}>")));
    convert(&golden(model), path);
    let (tokens, merges) = (Foreign::Texts(tokens), Foreign::Texts(merges));
    let model = ("tokenizer.ggml.model", Foreign::Text("gpt2"));
    gguf::add(path, &[model, ("tokenizer.ggml.tokens", tokens), ("tokenizer.ggml.merges", merges)]);
    gguf::add(path, more);
}

fn open(path: &Path) -> Tokenizer {
    Checkpoint::open(path).unwrap().tokenizer.unwrap()
}

/// The tokenizer that `tokenizer.json` describes.
fn reference(pre_tokenizer: &Value, ignore_merges: bool) -> Tokenizer {
    let (tokens, merges) = vocabulary();
    let vocab: Map<_, _> =
        tokens.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
    let model =
        json!({"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": byte_level(true), "model": model,
    });
    Tokenizer::from_bytes(tokenizer.to_string()).unwrap()
}

fn words(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let mut text = PreTokenizedString::from(text);
    tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut text).unwrap();
    let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits.into_iter().map(|(word, _, _)| word.to_owned()).collect()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn names_of_pre_tokenizers_split_as_their_models_do() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    for (names, pre_tokenizer) in references() {
        for name in names {
            file(&path, &[("tokenizer.ggml.pre", Foreign::Text(name))]);
            let (own, reference) = (
                open(&path),
                reference(&pre_tokenizer, ["llama-bpe", "tekken"].contains(&names[0])),
            );
            for text in TEXTS {
                // Falcon counts the backtick among punctuation, llama.cpp's default does not.
                let text = if *name == "default" { text.replace('`', "") } else { text.to_owned() };
                assert_eq!(words(&own, &text), words(&reference, &text), "{name}");
                assert_eq!(ids(&own, &text), ids(&reference, &text), "{name}: {text}");
                assert_eq!(own.decode(&ids(&own, &text), false).unwrap(), text, "{name}");
            }
        }
    }
    file(&path, &[("tokenizer.ggml.pre", Foreign::Text("default"))]);
    assert_eq!(words(&open(&path), "`12345` a+b?"), ["`", "123", "45", "`", "Ġa", "+", "b", "?"]);
    file(&path, &[("tokenizer.ggml.pre", Foreign::Text("tekken"))]);
    let expected = ["get", "HTTPResponse", "Code", "1", "2", "Ġit", "'s", "Ġ//"];
    assert_eq!(words(&open(&path), "getHTTPResponseCode12 it's //"), expected);
    file(&path, &[("tokenizer.ggml.pre", Foreign::Text("gpt-4o"))]);
    let expected = ["get", "HTTPResponse", "Code", "123", "4", "Ġit's", "Ġ//"];
    assert_eq!(words(&open(&path), "getHTTPResponseCode1234 it's //"), expected);
    file(&path, &[("tokenizer.ggml.pre", Foreign::Text("whatever"))]);
    let error = Checkpoint::open(&path).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.pre") && error.contains("`whatever`"), "{error}");
}

/// A word that is a token stays whole where Llama 3's way says so, and no merge leads to it.
#[test]
fn words_that_are_tokens() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let hello = vocabulary().0.len() as u32 - 1;
    for (name, whole) in [
        ("llama-bpe", true),
        ("lfm2", true),
        ("tekken", true),
        ("dbrx", false),
        ("gpt-4o", false),
        ("qwen2", false),
        ("gpt-2", false),
    ] {
        file(&path, &[("tokenizer.ggml.pre", Foreign::Text(name))]);
        assert_eq!(ids(&open(&path), "hello") == [hello], whole, "{name}");
    }
}

/// A text begins with the first token where the file says so and, with Llama 3's way, where it says nothing.
#[test]
fn first_tokens() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let bos = || ("tokenizer.ggml.bos_token_id", Foreign::Number(7));
    let check = |name: &str, says: Option<bool>, begins: bool| {
        let mut more = vec![("tokenizer.ggml.pre", Foreign::Text(name)), bos()];
        more.extend(says.map(|says| ("tokenizer.ggml.add_bos_token", Foreign::Bool(says))));
        file(&path, &more);
        assert_eq!(ids(&open(&path), "a")[0] == 7, begins, "{name} {says:?}");
    };
    check("llama-bpe", None, true);
    check("llama-bpe", Some(false), false);
    check("gpt-2", None, false);
    check("gpt-2", Some(true), true);
}

/// Generation ends at what a file names, then at the tokens that end turns and texts in every model.
#[test]
fn ends_are_found_by_their_texts() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let write = |ends: &[&str], eos: &[u32]| {
        let (mut tokens, merges) = vocabulary();
        tokens.splice(1..1, ends.iter().map(|end| (*end).to_owned()));
        convert(&golden("llama-tied"), &path);
        gguf::hide(&path, "tokenizer.ggml.eos_token_id");
        let eos = eos.iter().map(|id| ("tokenizer.ggml.eos_token_id", Foreign::Number(*id)));
        gguf::add(&path, &eos.collect::<Vec<_>>());
        gguf::add(
            &path,
            &[
                ("tokenizer.ggml.model", Foreign::Text("gpt2")),
                ("tokenizer.ggml.pre", Foreign::Text("llama-bpe")),
                ("tokenizer.ggml.tokens", Foreign::Texts(tokens)),
                ("tokenizer.ggml.merges", Foreign::Texts(merges)),
            ],
        );
        Checkpoint::open(&path).unwrap().config.eos_token_ids
    };
    for end in ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<end_of_turn>"] {
        assert_eq!(write(&[end], &[]), [1], "{end}");
        assert_eq!(write(&["<x>", end], &[1]), [1, 2], "{end}");
        assert_eq!(write(&[end], &[1]), [1], "{end}");
    }
    assert_eq!(write(&["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], &[3]), [3, 1, 2]);
    assert_eq!(write(&["<|start|>", "eot_id", "<im_end>"], &[]), [0; 0]);
}

/// What is written to a log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a file does not say how it splits words, its architecture decides, and a warning names the choice.
#[test]
fn files_without_a_pre_tokenizer() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    let logged = |path: &Path| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let tokenizer = tracing::subscriber::with_default(subscriber, || open(path));
        let log = log.0.lock().unwrap().clone();
        (tokenizer, String::from_utf8(log).unwrap())
    };
    for (model, tokens, chosen, name) in [
        ("llama-tied", None, "Default", "default"),
        ("llama-tied", Some(128_256), "Llama3", "llama-bpe"),
        ("qwen2-window", None, "Qwen2", "qwen2"),
        ("qwen3", None, "Qwen2", "qwen2"),
    ] {
        file_of(model, tokens, &path, &[]);
        let (tokenizer, log) = logged(&path);
        assert!(log.contains("WARN") && log.contains("tokenizer.ggml.pre is missing"), "{log}");
        assert!(log.contains(chosen) && log.contains("model.gguf"), "{log}");
        file_of(model, tokens, &path, &[("tokenizer.ggml.pre", Foreign::Text(name))]);
        let (named, log) = logged(&path);
        assert_eq!(log, "", "a file that names its way is not warned about");
        TEXTS.iter().for_each(|text| assert_eq!(words(&tokenizer, text), words(&named, text)));
    }
}

/// A damaged tokenizer or chat template gives an error or works, within a time.
#[test]
fn damaged_tokenizers_and_templates_never_panic() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama-tied").join(file), folder.join(file)).unwrap();
    }
    // Byte-level BPE, as the models served have it, of 96 tokens.
    let letters = ('!'..='~').chain(['Ġ', 'Ċ']);
    let vocab: Map<_, _> =
        letters.enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 96, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] | trim }}>{% if loop.last and \
                    m.content.startswith('x') %}{{ raise_exception('no') }}{% endif %}\
                    {{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";
    let files = [
        (folder.join("tokenizer.json"), tokenizer.to_string()),
        (folder.join("chat_template.jinja"), template.to_owned()),
        (
            folder.join("tokenizer_config.json"),
            json!({"chat_template": template, "bos_token": "!"}).to_string(),
        ),
    ];
    let write_all = || files.iter().for_each(|(path, text)| std::fs::write(path, text).unwrap());
    write_all();
    let messages = [json!({"role": "user", "content": "hello, wörld"})];
    let try_out = || -> Result<(), Box<dyn std::error::Error>> {
        let checkpoint = Checkpoint::open(folder)?;
        if let Some(template) = checkpoint.compile_template()? {
            let text = template.render(&messages, &[])?;
            assert!(text.len() < 1 << 20, "a short template writes a short text");
        }
        if let Some(tokenizer) = &checkpoint.tokenizer {
            let ids = tokenizer.encode("hello, wörld <|end|>", true).map_err(|e| e.to_string())?;
            tokenizer.decode(ids.get_ids(), false).map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    try_out().unwrap();
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for (index, (path, text)) in files.iter().enumerate() {
        if index == 2 {
            std::fs::remove_file(&files[1].0).unwrap(); // it would come before the one in JSON
        }
        let whole = text.as_bytes();
        for _ in 0..300 {
            let mut bytes = whole.to_vec();
            if random.u8(..4) == 0 {
                bytes.truncate(random.usize(..whole.len()));
            } else {
                for _ in 0..random.usize(1..4) {
                    // One bit, which keeps more files readable than any byte would.
                    bytes[random.usize(..whole.len())] ^= 1 << random.u8(..8);
                }
            }
            std::fs::write(path, &bytes).unwrap();
            if let Err(error) = try_out() {
                assert!(!error.to_string().is_empty());
            }
        }
        write_all();
    }
}
