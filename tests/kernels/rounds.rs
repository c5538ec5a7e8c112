//! The engine on the emulator: speculation changes nothing, and rounds that the device decides are those that the host
//! would.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::write::{Meta, gguf_file};
use pleach::engine::{Engine, EngineConfig, Request, TokenOut};
use pleach::grammar::{Grammar, GrammarCompiler, GrammarSource};
use pleach::model::{
    CudaDecoder, CudaDraft, CudaRunner, Family, Forward, ModelConfig, OutOfMemory, RoundResult,
    Rows, VerifyTask,
};
use pleach::sampling::{Dry, SamplingParams};
use pleach_kernels::DType;
use pleach_kernels::cuda::{CudaError, Device, Draw, KvFormat, Tensor, Verifier, VerifySequence};
use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::decoder::{config, device};
use super::support::random_model::write_model;

const VOCAB: usize = 131;
const BLOCKS: usize = 64;

/// What must be the same with and without speculation: token, log-probability and those of the likeliest.
pub(crate) type Said = (u32, Option<f32>, Vec<(u32, f32)>);

/// Runs requests together to their ends.
pub(crate) fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Vec<Said>> {
    let answers = engine.answer(requests.to_vec()).unwrap();
    assert_eq!(engine.cache_blocks().0, 0, "blocks leaked");
    let said = |token: TokenOut| (token.id, token.logprob, token.top_logprobs);
    answers.into_iter().map(|answer| answer.tokens.into_iter().map(said).collect()).collect()
}

/// A target on the device that decides rounds itself, or leaves them to the host; counts those it decides.
struct Target {
    runner: CudaRunner,
    decides: bool,
    decided: Arc<AtomicUsize>,
}

impl Forward for Target {
    fn config(&self) -> &ModelConfig {
        self.runner.config()
    }

    fn head_rows(&self) -> usize {
        self.runner.head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.runner.draft_vocab()
    }

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        self.runner.forward(rows)
    }

    fn verifies(&self) -> bool {
        self.decides && self.runner.verifies()
    }

    fn forward_and_verify(
        &mut self,
        rows: &Rows,
        tasks: &[VerifyTask<'_>],
    ) -> Result<(&[f32], Vec<RoundResult>), OutOfMemory> {
        self.decided.fetch_add(tasks.len(), Ordering::Relaxed);
        self.runner.forward_and_verify(rows, tasks)
    }

    fn hidden_state(&self, row: usize, out: &mut [f32]) {
        self.runner.hidden_state(row, out);
    }
}

/// A target, and a draft that is its first block, takes the target's embedding and knows three of four tokens.
struct Models {
    device: Arc<Device>,
    folder: tempfile::TempDir,
    cache: KvFormat,
}

/// Writes the draft of a model.
pub(crate) fn write_draft(model: &Path, draft: &Path) {
    let mut checkpoint = Checkpoint::open(model).unwrap();
    let config = ModelConfig { num_hidden_layers: 1, ..checkpoint.config.clone() };
    let names = pleach::model::tensor_names(&config, |name| checkpoint.has(name));
    let tensor = |name: String| (name.clone(), checkpoint.tensor(&name).unwrap());
    let tensors: Vec<_> = names.into_iter().map(tensor).collect();
    let vocab: Vec<u32> = (0..config.vocab_size as u32).filter(|id| id % 4 != 3).collect();
    let more = [("pleach.draft_vocab", Meta::Numbers(&vocab))];
    gguf_file(draft, "draft", &config, &more, &tensors).unwrap();
}

impl Models {
    fn new(device: &Arc<Device>, cache: KvFormat) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        write_model(&path, &config(Family::Qwen3), 5, &|_| DType::BF16, &|_| 1.0);
        write_draft(&path, &folder.path().join("draft.gguf"));
        Self { device: Arc::clone(device), folder, cache }
    }

    /// An engine, and the number of rounds that its target decided.
    fn engine(&self, decides: bool, drafts: bool, budget: usize) -> (Engine, Arc<AtomicUsize>) {
        let open = |name: &str| Checkpoint::open(&self.folder.path().join(name)).unwrap();
        let runner = |decoder| CudaRunner::new(decoder, BLOCKS, 64).unwrap();
        let mut checkpoint = open("model.gguf");
        let target = CudaDecoder::load_with(&mut checkpoint, &self.device, self.cache).unwrap();
        let draft = drafts.then(|| {
            let draft = target.lender().load_draft(&mut open("draft.gguf"), &mut checkpoint);
            let CudaDraft::Standalone(draft) = draft.unwrap() else { panic!("an attached draft") };
            // It has one block of the target's two.
            assert_eq!(2 * draft.block_bytes(), target.block_bytes(), "caches of one format");
            Box::new(runner(*draft)) as Box<dyn Forward>
        });
        let config = EngineConfig { max_num_batched_tokens: budget, ..settings() };
        let decided = Arc::new(AtomicUsize::new(0));
        let target = Target { runner: runner(target), decides, decided: Arc::clone(&decided) };
        (Engine::with_models(Box::new(target), draft, config).unwrap(), decided)
    }
}

/// Drafts of three tokens, however they fare.
pub(crate) fn settings() -> EngineConfig {
    EngineConfig {
        max_model_len: Some(64),
        num_blocks: Some(BLOCKS),
        num_speculative_tokens: 3,
        ngram: false,
        adaptive: false,
        seed: Some(3),
        ..EngineConfig::default()
    }
}

/// Eight letters of four.
fn grammar() -> Grammar {
    let vocab: Vocab = ('!'..='~').map(String::from).zip(0..).collect();
    let mut tokenizer =
        Tokenizer::new(BPE::builder().vocab_and_merges(vocab, Vec::new()).build().unwrap());
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, false)));
    let compiler = GrammarCompiler::new(&tokenizer, VOCAB, &[2]).unwrap();
    compiler.compile(&GrammarSource::Regex("[a-d]{8}".into())).unwrap()
}

fn request(start: u32, params: SamplingParams, top_logprobs: Option<usize>) -> Request {
    let prompt = (0..11).map(|i| (start + i * 7) % VOCAB as u32).collect();
    Request { params, ignore_eos: true, top_logprobs, ..Request::greedy(prompt, 9) }
}

/// Every kind of request whose tokens do not depend on drafts.
pub(crate) fn requests() -> Vec<Request> {
    let dry = Some(Dry { multiplier: 0.8, allowed_length: 1, ..Dry::default() });
    let sampled = |seed| SamplingParams { seed: Some(seed), ..SamplingParams::default() };
    let penalised = SamplingParams {
        repetition_penalty: 1.4,
        presence_penalty: 0.5,
        frequency_penalty: 0.3,
        logit_bias: [(7, 2.5), (90, -4.0)].into(),
        ..SamplingParams::greedy()
    };
    vec![
        request(3, SamplingParams::greedy(), None),
        request(50, SamplingParams::greedy(), Some(2)),
        request(50, penalised.clone(), Some(0)),
        request(80, SamplingParams { temperature: 0.9, top_p: 0.8, ..sampled(9) }, Some(0)),
        request(20, SamplingParams { top_k: Some(20), min_p: 0.05, ..sampled(10) }, None),
        request(20, SamplingParams { temperature: 1.5, seed: Some(11), ..penalised }, None),
        Request { grammar: Some(grammar()), ..request(70, SamplingParams::greedy(), Some(0)) },
        Request { grammar: Some(grammar()), ..request(70, sampled(12), None) },
        request(60, SamplingParams { typical_p: 0.9, top_n_sigma: 2.0, ..sampled(13) }, None),
        request(60, SamplingParams { xtc_probability: 0.5, dry, ..sampled(14) }, None),
    ]
}

/// The whole engine, alone and together: the same tokens and log-probabilities, bit for bit, with and without
/// speculation, also over caches of codes.
pub(crate) fn speculation_on_cuda_changes_nothing() {
    let device = device();
    let [float, codes] = [KvFormat::Float, KvFormat::Int8]
        .map(|cache| changes_nothing(&Models::new(&device, cache)));
    assert_ne!(float, codes, "the caches are of two formats");
}

/// What is said.
fn changes_nothing(models: &Models) -> Vec<Vec<Said>> {
    let requests = requests();
    let (mut plain, _) = models.engine(true, false, 512);
    let expected: Vec<_> =
        requests.iter().map(|r| run(&mut plain, std::slice::from_ref(r)).remove(0)).collect();
    let (mut speculating, _) = models.engine(true, true, 512);
    assert_eq!(run(&mut speculating, &requests), expected, "together, with speculation");
    let stats = speculating.stats();
    println!("{stats:?}");
    let (mut narrow, _) = models.engine(true, true, 5);
    assert_eq!(run(&mut narrow, &requests[..3]), expected[..3], "in chunks of 5 rows");
    expected
}

/// Rounds that the device decides are those that the host decides over the same logits, drawn with the same numbers:
/// also where draft tokens are rejected by chance.
pub(crate) fn the_device_decides_as_the_host_does() {
    let device = device();
    let models = Models::new(&device, KvFormat::Float);
    let mut requests = requests();
    let by_chance = SamplingParams { temperature: 0.7, ..SamplingParams::default() };
    requests.extend([
        request(33, by_chance.clone(), None),
        request(34, SamplingParams { top_p: 0.9, presence_penalty: 0.4, ..by_chance }, Some(0)),
    ]);
    let (mut host, none) = models.engine(false, true, 512);
    let (mut on_device, decided) = models.engine(true, true, 512);
    let (expected, got) = (run(&mut host, &requests), run(&mut on_device, &requests));
    for (index, (expected, got)) in expected.iter().zip(&got).enumerate() {
        let ids = |said: &[Said]| said.iter().map(|said| said.0).collect::<Vec<_>>();
        assert_eq!(ids(expected), ids(got), "request {index}");
        for (expected, got) in expected.iter().zip(got) {
            let close = match (expected.1, got.1) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-5,
                (a, b) => a == b,
            };
            assert!(close && expected.2 == got.2, "request {index}: {expected:?}, {got:?}");
        }
    }
    assert_eq!(none.load(Ordering::Relaxed), 0);
    // All but those that want the likeliest tokens' log-probabilities, or uncommon samplers.
    assert_eq!(expected[1][0].2.len(), 2);
    let rounds = decided.load(Ordering::Relaxed);
    assert!(rounds >= 9 * 3, "{rounds} rounds on the device");
    let stats = on_device.stats();
    println!("{rounds} rounds on the device; {stats:?}");
}

pub(crate) fn rounds_that_do_not_fit_are_refused() {
    let device = device();
    let draw = Draw {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        penalties: [1.0, 0.0, 0.0],
        top_k: 0,
        seed: 1,
        position: 4,
        coupled: false,
    };
    let plain = VerifySequence {
        first_row: 1,
        draft: vec![(5, Vec::new())],
        draw,
        counts: None,
        bias: Vec::new(),
        masks: Vec::new(),
    };
    let mut verifier = Verifier::new(&device).unwrap();
    let mut refused = |change: &dyn Fn(&mut VerifySequence<'static>), expected: &str| {
        let mut sequence = plain.clone();
        change(&mut sequence);
        let error = verifier.set([3, 40], &[sequence]).unwrap_err();
        assert!(matches!(error, CudaError::Argument { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(&|s| s.first_row = 2, "rows beyond the 3");
    refused(&|s| s.bias = vec![(40, 1.0)], "token 40 of 40");
    refused(&|s| s.counts = Some(vec![(41, [1, 0])]), "token 41 of 40");
    refused(&|s| s.draft[0].1 = vec![(99, 1.0)], "token 99 of 40");
    refused(&|s| s.masks = vec![&[0, 0]], "masks");
    refused(&|s| s.masks = vec![&[0, 0], &[0]], "masks");
    verifier.set([3, 40], &[plain]).unwrap();
    let logits = |rows| Tensor::from_f32(&device, DType::F32, [rows, 40], &vec![0.5; rows * 40]);
    let error = verifier.run(&logits(2).unwrap()).unwrap_err();
    assert!(error.to_string().contains("not F32 [3, 40]"), "{error}");
    let rows = verifier.run(&logits(3).unwrap()).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].accepted, rows[0].token), (0, 0), "the lowest id among equals");
}
