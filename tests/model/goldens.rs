//! Logits against `transformers` and `peft`, from files written by `tests/python/make_goldens.py` and `make_lora.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::logits::{self, relative_error};
use pleach::checkpoint::adapter::Adapter;
use pleach::checkpoint::{Checkpoint, source};
use pleach::model::{AdapterWeights, Decoder, Precision};
use pleach::text::ChatTemplate;
use pleach_kernels::ThreadPool;
use safetensors::SafeTensors;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn decoder(checkpoint: &mut Checkpoint) -> Decoder {
    let pool = Arc::new(ThreadPool::new(2));
    Decoder::load_with(checkpoint, &pool, Precision::F32).unwrap()
}

fn default_model() -> Checkpoint {
    let source = source::DEFAULT_MODEL.parse::<source::Source>().unwrap();
    Checkpoint::open(&source::resolve(&source, &source::default_cache_dir()).unwrap()).unwrap()
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn ids(tensors: &SafeTensors, name: &str) -> Vec<u32> {
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Logits of all positions, through an adapter where one is named, in two chunks.
fn logits(decoder: &Decoder, tokens: &[u32], adapter: Option<&Arc<AdapterWeights>>) -> Vec<f32> {
    logits::logits(decoder, tokens, adapter, tokens.len() / 3 * 2)
}

/// Every family, float format, rotary scaling and window, tied and untied, whole and sharded.
#[test]
fn small_models_of_every_family() {
    let mut seen = 0;
    for entry in std::fs::read_dir(goldens()).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let decoder = decoder(&mut Checkpoint::open(&folder).unwrap());
        let got = logits(&decoder, &ids(&golden, "tokens"), None);
        let error = relative_error(&got, &floats(&golden, "logits"));
        println!("{}: relative error {error:.2e}", folder.file_name().unwrap().display());
        assert!(error < 1e-4, "{}: relative error {error}", folder.display());
        seen += 1;
    }
    assert_eq!(seen, 14);
}

/// Adapters of all modules, of ranks and scales that differ by module, and of a model whose outputs are normed.
#[test]
fn adapters_as_peft_saves_them() {
    for name in ["llama-tied", "qwen3", "gemma2"] {
        let folder = goldens().join("lora").join(name);
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let decoder = decoder(&mut Checkpoint::open(&goldens().join(name)).unwrap());
        let tokens = ids(&golden, "tokens");
        let plain = logits(&decoder, &tokens, None);
        let adapter = Adapter::read(&folder).unwrap();
        let adapter = Arc::new(decoder.adapter_shapes().load(&adapter).unwrap());
        let expected = floats(&golden, "logits");
        let error = relative_error(&logits(&decoder, &tokens, Some(&adapter)), &expected);
        println!("{name}: relative error {error:.2e}");
        assert!(error < 1e-4, "{name}: relative error {error}");
        assert!(relative_error(&plain, &expected) > 0.1, "{name}: the adapter does something");
        assert_eq!(logits(&decoder, &tokens, None), plain, "{name}: other rows are as they were");
    }
}

#[test]
fn the_default_model() {
    let bytes = std::fs::read(goldens().join("smollm2-135m-instruct/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let decoder = decoder(&mut default_model());
    let all = logits(&decoder, &ids(&golden, "tokens"), None);
    let columns = ids(&golden, "columns");
    let (mut got, mut sums) = (Vec::new(), Vec::new());
    for (row, best) in ids(&golden, "rows").into_iter().zip(ids(&golden, "best")) {
        let row = &all[row as usize * decoder.head_rows()..][..decoder.head_rows()];
        got.extend(columns.iter().map(|column| row[*column as usize]));
        sums.push(pleach::sampling::log_sum_exp(row));
        assert_eq!(pleach::sampling::greedy_token(row), Ok(best));
    }
    for (name, got) in [("logits", got), ("log_sum_exp", sums)] {
        let error = relative_error(&got, &floats(&golden, name));
        println!("{name}: relative error {error:.2e}");
        assert!(error < 1e-4, "{name}: relative error {error}");
    }
}

/// The tokenizer and the chat template of the GGUF file do what `transformers` does with them.
#[test]
fn conversations_have_the_same_tokens() {
    let text = std::fs::read(goldens().join("smollm2-135m-instruct/chat.json")).unwrap();
    let chat: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let checkpoint = default_model();
    let template =
        ChatTemplate::new(checkpoint.chat_templates.default.as_deref().unwrap(), "", "<|im_end|>")
            .unwrap();
    let prompt = template.render(chat["messages"].as_array().unwrap(), &[]).unwrap();
    assert_eq!(prompt, chat["prompt"].as_str().unwrap());
    let encoding = checkpoint.tokenizer.unwrap().encode(prompt, false).unwrap();
    let expected: Vec<u64> =
        chat["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
    assert_eq!(encoding.get_ids().iter().map(|id| u64::from(*id)).collect::<Vec<_>>(), expected);
    let bytes = std::fs::read(goldens().join("smollm2-135m-instruct/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = ids(&golden, "tokens");
    let text = include_str!("../data/pride.txt");
    let text: String = text.chars().take(1500).collect();
    let checkpoint = default_model();
    let encoding = checkpoint.tokenizer.unwrap().encode(text, false).unwrap();
    assert_eq!(&encoding.get_ids()[..tokens.len()], tokens);
}

/// A GGUF file's SentencePiece tokenizer gives the tokens that the `sentencepiece` package gives, from
/// files written by `tests/python/make_sentencepiece.py`.
#[test]
fn sentencepiece_tokens_agree() {
    let folder = goldens().join("sentencepiece");
    let tokenizer = Checkpoint::open(&folder.join("model.gguf")).unwrap().tokenizer.unwrap();
    let texts = std::fs::read(folder.join("texts.json")).unwrap();
    let texts: Vec<serde_json::Value> = serde_json::from_slice(&texts).unwrap();
    assert!(texts.len() > 5);
    for entry in texts {
        let text = entry["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text, true).unwrap();
        let expected: Vec<u32> = serde_json::from_value(entry["ids"].clone()).unwrap();
        assert_eq!(encoding.get_ids(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected, true).unwrap(), text);
    }
}
