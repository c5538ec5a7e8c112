//! Engines on the default model for the tests of engine and speculation.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    reason = "test support, shared by several test binaries that each use a part of it"
)]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use pleach::checkpoint::write::{Meta, gguf_file};
use pleach::checkpoint::{ATTACHMENT, Checkpoint, RawTensor, source};
use pleach::engine::{Answer, Engine, EngineConfig, Request};
use pleach::grammar::{Grammar, GrammarCompiler, GrammarSource};
use pleach::model::{Decoder, Draft, ModelConfig, PROJECTIONS, layer_tensor_names};
use pleach_kernels::{DType, ThreadPool};

/// The default model's file, fetched once.
fn model_path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let source = source::DEFAULT_MODEL.parse::<source::Source>().unwrap();
        source::resolve(&source, &source::default_cache_dir()).unwrap()
    })
}

/// An engine on the default model. The draft is the target's own first `draft_blocks` blocks: all
/// of them make a perfect draft, fewer a poor one.
pub fn engine(config: &EngineConfig, draft_blocks: Option<usize>) -> Engine {
    let pool = Arc::new(ThreadPool::new(2));
    let mut checkpoint = Checkpoint::open(model_path()).unwrap();
    let target = Decoder::load(&mut checkpoint, &pool).unwrap();
    let draft = draft_blocks.map(|blocks| {
        checkpoint.config.num_hidden_layers = blocks;
        Decoder::load_draft(&mut checkpoint, &target, &pool).unwrap()
    });
    Engine::new(target, draft, config.clone()).unwrap()
}

/// An engine on the default model with its last two blocks attached: the first step goes on from the target's last
/// state, further ones from their own, as if there were no token between.
pub fn engine_with_attached(config: &EngineConfig) -> Engine {
    let pool = Arc::new(ThreadPool::new(2));
    let mut checkpoint = Checkpoint::open(model_path()).unwrap();
    let target = Decoder::load(&mut checkpoint, &pool).unwrap();
    let (total, width) = (checkpoint.config.num_hidden_layers, checkpoint.config.hidden_size);
    let mut draft = checkpoint.config.clone();
    draft.num_hidden_layers = 2;
    let mut tensors = Vec::new();
    for block in 0..2 {
        for name in
            layer_tensor_names(&checkpoint.config, total - 2 + block, |name| checkpoint.has(name))
        {
            let tensor = checkpoint.tensor(&name).unwrap();
            let old = format!("layers.{}.", total - 2 + block);
            tensors.push((name.replace(&old, &format!("layers.{block}.")), tensor));
        }
    }
    let norm = "model.norm.weight";
    tensors.push((norm.into(), checkpoint.tensor(norm).unwrap()));
    for name in PROJECTIONS {
        // What the token and the state before it say, halved.
        let values: Vec<f32> = (0..width)
            .flat_map(|row| {
                (0..2 * width).map(move |col| if col % width == row { 4.0 } else { 0.0 })
            })
            .collect();
        let data = DType::Q8_0.quantize(&values).unwrap();
        let shape = vec![width, 2 * width];
        tensors.push((name.into(), RawTensor { dtype: DType::Q8_0, shape, data }));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("attached.gguf");
    let (blocks, states) = ([total as u32 - 2, total as u32 - 1], [total as u32]);
    let more = [(ATTACHMENT[0], Meta::Numbers(&blocks)), (ATTACHMENT[1], Meta::Numbers(&states))];
    gguf_file(&path, "attached", &draft, &more, &tensors).unwrap();
    let mut draft = Checkpoint::open(&path).unwrap();
    let draft = Decoder::load_draft(&mut draft, &target, &pool).unwrap();
    assert!(matches!(draft, Draft::Attached(_)));
    Engine::new(target, Some(draft), config.clone()).unwrap()
}

/// The shape of the default model.
pub fn model_config() -> ModelConfig {
    Checkpoint::open(model_path()).unwrap().config
}

/// A chat prompt of the default model.
pub fn prompt(text: &str) -> Vec<u32> {
    let text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
    tokenizer().encode(text, false).unwrap().get_ids().to_vec()
}

fn tokenizer() -> &'static tokenizers::Tokenizer {
    static TOKENIZER: OnceLock<tokenizers::Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Checkpoint::open(model_path()).unwrap().tokenizer.unwrap())
}

/// A grammar over the default model's tokens.
pub fn grammar(source: &GrammarSource) -> Grammar {
    let config = Checkpoint::open(model_path()).unwrap().config;
    let compiler = GrammarCompiler::new(tokenizer(), config.vocab_size, &config.eos_token_ids);
    compiler.unwrap().compile(source).unwrap()
}

/// Runs all requests together to their end.
pub fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Answer> {
    let answers = engine.answer(requests.to_vec()).unwrap();
    assert_eq!(engine.cache_blocks().0, 0, "blocks leaked");
    answers
}

pub const QUESTIONS: [&str; 8] = [
    "What is the capital of France?",
    "Count from one to twenty.",
    "Write a haiku about rain.",
    "Explain why the sky is blue to a child, in two sentences.",
    "List three uses of a paper clip.",
    "Translate 'good morning' into Spanish, Italian and German, and say which of these languages \
     are related to each other.",
    "def fibonacci(n):",
    "Tell me a joke.",
];

/// Greedy requests for the questions.
pub fn questions(max_tokens: usize) -> Vec<Request> {
    QUESTIONS.iter().map(|text| Request::greedy(prompt(text), max_tokens)).collect()
}

/// Token ids of each output.
pub fn ids(outputs: &[Answer]) -> Vec<Vec<u32>> {
    outputs.iter().map(Answer::ids).collect()
}
