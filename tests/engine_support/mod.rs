//! Engines on the default model for the tests of engine and speculation.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    reason = "test support, shared by several test binaries that each use a part of it"
)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use pleach::checkpoint::{Checkpoint, source};
use pleach::engine::{
    Engine, EngineConfig, Event, FinishReason, Request, RequestId, SequenceStats, TokenOut,
};
use pleach::model::Decoder;
use pleach::ops::ThreadPool;

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

/// A chat prompt of the default model.
pub fn prompt(text: &str) -> Vec<u32> {
    static TOKENIZER: OnceLock<tokenizers::Tokenizer> = OnceLock::new();
    let tokenizer =
        TOKENIZER.get_or_init(|| Checkpoint::open(model_path()).unwrap().tokenizer.unwrap());
    let text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
    tokenizer.encode(text, false).unwrap().get_ids().to_vec()
}

pub struct Output {
    pub tokens: Vec<TokenOut>,
    pub reason: FinishReason,
    pub stats: SequenceStats,
}

impl Output {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Runs all requests together to their end.
pub fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Output> {
    let ids: Vec<RequestId> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut tokens: HashMap<RequestId, Vec<TokenOut>> = HashMap::new();
    let mut ends = HashMap::new();
    while engine.has_work() {
        for (id, event) in engine.step() {
            match event {
                Event::Tokens(new) => tokens.entry(id).or_default().extend(new),
                Event::Prompt(_) | Event::Embedding(_) => {}
                Event::Finished { reason, stats } => {
                    ends.insert(id, (reason, stats));
                }
            }
        }
    }
    assert_eq!(engine.cache_blocks().0, 0, "blocks leaked");
    ids.into_iter()
        .map(|id| {
            let (reason, stats) = ends.remove(&id).unwrap();
            Output { tokens: tokens.remove(&id).unwrap_or_default(), reason, stats }
        })
        .collect()
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
pub fn ids(outputs: &[Output]) -> Vec<Vec<u32>> {
    outputs.iter().map(Output::ids).collect()
}
