//! LoRA adapters at serve time: what they add is what merging them adds, and nothing that runs beside them changes.

use std::path::Path;
use std::sync::Arc;

use crate::support::adapter::write_adapter;
use crate::support::engines::{engine, engine_with_attached, model_config, questions, run};
use crate::support::gguf::write_changed;
use crate::support::logits::{logits, relative_error};
use crate::support::random_model::write_model;
use pleach::checkpoint::adapter::Adapter;
use pleach::checkpoint::{Checkpoint, RawTensor};
use pleach::engine::{Answer, Engine, EngineConfig, Event, Request};
use pleach::kv_cache::CacheSalt;
use pleach::model::{
    AdapterShapes, AdapterWeights, Decoder, Design, Family, ModelConfig, Precision, RopeConfig,
    RopeScaling,
};
use pleach_kernels::{DType, ThreadPool};

/// An adapter for models of these shapes, in memory.
fn loaded(shapes: &Arc<AdapterShapes>, adapter: &Adapter) -> Arc<AdapterWeights> {
    Arc::new(shapes.load(adapter).unwrap())
}

fn random_adapter(config: &ModelConfig, seed: u64, rank: usize, size: f32) -> Adapter {
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), config, seed, rank, size);
    Adapter::read(folder.path()).unwrap()
}

/// The model of a checkpoint with an adapter folded into it, in f32.
fn merged(checkpoint: &mut Checkpoint, adapter: &Adapter, path: &Path) -> Decoder {
    write_changed(checkpoint, path, &[], |name, tensor| {
        let mut values = tensor.to_f32();
        adapter.fold(name, &mut values);
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        RawTensor { dtype: DType::F32, shape: tensor.shape, data }
    });
    load(&mut Checkpoint::open(path).unwrap(), Precision::F32)
}

fn load(checkpoint: &mut Checkpoint, precision: Precision) -> Decoder {
    Decoder::load_with(checkpoint, &Arc::new(ThreadPool::new(2)), precision).unwrap()
}

/// In f32, for models whose biases, norms of heads, norms of outputs and gates differ.
#[test]
fn an_adapter_adds_what_merging_it_adds() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama-tied", "llama-biases", "qwen2-sharded", "qwen3", "gemma2", "gemma3"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let mut checkpoint = Checkpoint::open(&golden).unwrap();
        let tokens: Vec<u32> = (0..45).map(|i| (i * i * 7 + 3 * i) % 96).collect();
        let decoder = load(&mut checkpoint, Precision::F32);
        let plain = logits(&decoder, &tokens, None, 45);
        let adapter = random_adapter(decoder.config(), 2, 5, 0.5);
        let merged = merged(&mut checkpoint, &adapter, &folder.path().join(format!("{name}.gguf")));
        let loaded = loaded(decoder.adapter_shapes(), &adapter);
        let got = logits(&decoder, &tokens, Some(&loaded), 45);
        let expected = logits(&merged, &tokens, None, 45);
        let error = relative_error(&got, &expected);
        println!("{name}: relative error {error:.2e}");
        assert!(error < 1e-5, "{name}: relative error {error}");
        assert!(relative_error(&plain, &expected) > 0.05, "{name}: the adapter does something");
        // To the bit: in other chunks, and the model itself as it was.
        assert_eq!(logits(&decoder, &tokens, Some(&loaded), 7), got, "{name}");
        assert_eq!(logits(&decoder, &tokens, None, 45), plain, "{name}");
    }
}

fn small() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        vocab_size: 160,
        hidden_size: 96,
        intermediate_size: 160,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 32,
        max_position_embeddings: 256,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        design: Design::default(),
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    }
}

/// On GGUF files of the llama architecture, whose rows of query and key lie in another order; beside quantised
/// weights, the adapter costs no more than their rounding does without it.
#[test]
fn an_adapter_adds_the_same_to_quantised_weights() {
    let folder = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..60).map(|i| (i * i * 5 + i) % 160).collect();
    for format in [DType::Q8_0, DType::Q4_1, DType::BF16] {
        let path = folder.path().join(format!("{format:?}.gguf"));
        write_model(&path, &small(), 3, &|_| format, &|_| 1.0);
        let mut checkpoint = Checkpoint::open(&path).unwrap();
        let adapter = random_adapter(&checkpoint.config, 4, 8, 0.4);
        let exact = load(&mut checkpoint, Precision::F32);
        let stored = load(&mut checkpoint, Precision::AsStored);
        let loaded = loaded(exact.adapter_shapes(), &adapter);
        let merged = merged(&mut checkpoint, &adapter, &folder.path().join("merged.gguf"));
        let expected = logits(&merged, &tokens, None, 60);
        let error = relative_error(&logits(&exact, &tokens, Some(&loaded), 60), &expected);
        assert!(error < 1e-5, "{format:?}: relative error {error}");
        let plain = logits(&exact, &tokens, None, 60);
        let rounding = relative_error(&logits(&stored, &tokens, None, 60), &plain);
        let error = relative_error(&logits(&stored, &tokens, Some(&loaded), 60), &expected);
        println!("{format:?}: {error:.2e} with the adapter, {rounding:.2e} without");
        assert!(error < 2.0 * rounding, "{format:?}: {error} with it, {rounding} without");
        assert!(relative_error(&plain, &expected) > 0.1, "the adapter does something");
    }
}

/// Tokens and the bits of their log-probabilities.
fn bits(answers: &[Answer]) -> Vec<Vec<(u32, u32)>> {
    let token = |token: &pleach::engine::TokenOut| (token.id, token.logprob.unwrap().to_bits());
    answers.iter().map(|answer| answer.tokens.iter().map(token).collect()).collect()
}

/// Two adapters and the model itself in one batch say to the bit what each says alone, with a draft of either kind and
/// without.
#[test]
fn batches_and_drafts_change_nothing() {
    let adapters =
        [(1, 4), (2, 7)].map(|(seed, rank)| random_adapter(&model_config(), seed, rank, 0.1));
    let config = EngineConfig {
        num_blocks: Some(128),
        ngram: false,
        adaptive: false,
        num_speculative_tokens: 4,
        ..EngineConfig::default()
    };
    let mut plain = engine(&config, None);
    let shapes = plain.limits().adapters.clone().unwrap();
    let [one, two] = adapters.map(|adapter| Some(loaded(&shapes, &adapter)));
    // The same three questions to each.
    let through = [None, one, two];
    let requests: Vec<Request> = (questions(20).into_iter().take(3))
        .flat_map(|request| {
            through.clone().map(|adapter| Request {
                adapter,
                top_logprobs: Some(0),
                ..request.clone()
            })
        })
        .collect();
    let alone: Vec<Answer> = requests
        .iter()
        .flat_map(|request| run(&mut plain, std::slice::from_ref(request)))
        .collect();
    let alone = bits(&alone);
    for answers in alone.chunks(3) {
        assert!(answers[0] != answers[1] && answers[1] != answers[2] && answers[2] != answers[0]);
    }
    assert_eq!(bits(&run(&mut plain, &requests)), alone);
    for (name, mut engine) in [
        ("27 blocks", engine(&config, Some(27))),
        ("attached", engine_with_attached(&config, |_| {})),
    ] {
        let answers = run(&mut engine, &requests);
        assert_eq!(bits(&answers), alone, "{name}");
        // Drafts of the model itself stand for some of the rounds, and others are refused.
        for adapted in [false, true] {
            let of =
                requests.iter().zip(&answers).filter(|(it, _)| it.adapter.is_some() == adapted);
            let (drafted, accepted) = of.fold((0, 0), |(drafted, accepted), (_, answer)| {
                let rounds = &answer.stats.rounds;
                (drafted + rounds.draft_tokens, accepted + rounds.accepted_tokens)
            });
            println!("{name}, adapters {adapted}: {accepted} of {drafted} accepted");
            assert!(drafted > accepted && (accepted > 0 || name == "attached"), "{name}");
        }
    }
}

fn small_engine() -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write_model(&path, &small(), 3, &|_| DType::Q8_0, &|_| 1.0);
    let target = load(&mut Checkpoint::open(&path).unwrap(), Precision::AsStored);
    let config = EngineConfig { num_blocks: Some(64), ..EngineConfig::default() };
    Engine::new(target, None, config).unwrap()
}

fn small_prompt() -> Vec<u32> {
    (0..50).map(|i| (i * 13 + 5) % 160).collect()
}

/// What an adapter leaves in the prefix cache is found by its own requests alone, and by those of the same salt. One that
/// is loaded again is another one.
#[test]
fn prefixes_are_kept_apart() {
    let mut engine = small_engine();
    let shapes = engine.limits().adapters.clone().unwrap();
    let adapters = [1, 2, 1].map(|seed| loaded(&shapes, &random_adapter(&small(), seed, 3, 0.4)));
    let mut cached = |adapter: Option<&Arc<AdapterWeights>>, salt: Option<&str>| {
        let cache_salt = salt.map(|salt| CacheSalt::new("", salt));
        let adapter = adapter.cloned();
        let request = Request { adapter, cache_salt, ..Request::greedy(small_prompt(), 3) };
        let answer = run(&mut engine, &[request]).remove(0);
        (answer.ids(), answer.stats.cached_tokens)
    };
    for salt in [None, Some("a"), Some("b")] {
        for adapter in [None, Some(&adapters[0]), Some(&adapters[1]), Some(&adapters[2])] {
            let (first, none) = cached(adapter, salt);
            assert_eq!(none, 0, "{adapter:?} {salt:?}");
            assert_eq!(cached(adapter, salt), (first, 48), "{adapter:?} {salt:?}");
        }
    }
}

/// An adapter that nobody else holds lives as long as the last sequence that goes through it, also where that sequence had
/// to wait or is cancelled.
#[test]
fn an_adapter_ends_with_its_last_sequence() {
    let mut engine = small_engine();
    let shapes = engine.limits().adapters.clone().unwrap();
    let adapter = loaded(&shapes, &random_adapter(&small(), 1, 3, 0.4));
    let request = |adapter| Request { adapter, ..Request::greedy(small_prompt(), 20) };
    let expected = run(&mut engine, &[request(Some(Arc::clone(&adapter)))]).remove(0);
    let alive = Arc::downgrade(&adapter);
    let first = engine.submit(request(Some(Arc::clone(&adapter)))).unwrap();
    let second = engine.submit(request(Some(adapter))).unwrap();
    engine.submit(request(None)).unwrap();
    let mut said = Vec::new();
    while engine.has_work() {
        for (id, event) in engine.step() {
            match event {
                Event::Tokens(tokens) if id == second => said.extend(tokens.iter().map(|it| it.id)),
                Event::Finished { .. } if id == second => {
                    assert!(alive.upgrade().is_none(), "the last one has ended");
                }
                _ => {}
            }
        }
        if said.len() < expected.ids().len() {
            assert!(alive.upgrade().is_some());
            engine.cancel(first);
        }
    }
    assert_eq!(said, expected.ids());
}

/// A request through an adapter of another model is refused.
#[test]
fn adapters_of_other_models_are_refused() {
    let mut engine = small_engine();
    let mut config = small();
    config.intermediate_size = 64;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    write_model(&path, &config, 3, &|_| DType::F16, &|_| 1.0);
    let other = load(&mut Checkpoint::open(&path).unwrap(), Precision::AsStored);
    let adapter = random_adapter(&config, 1, 2, 1.0);
    let adapter = Some(loaded(other.adapter_shapes(), &adapter));
    let request = Request { adapter, ..Request::greedy(small_prompt(), 3) };
    assert_eq!(engine.submit(request).unwrap_err().field, "model");
}

/// Adapters of other models are refused, and the matrix named.
#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write_model(&path, &small(), 3, &|_| DType::F16, &|_| 1.0);
    let decoder = load(&mut Checkpoint::open(&path).unwrap(), Precision::AsStored);
    let refused = |change: fn(&mut ModelConfig)| {
        let mut config = small();
        change(&mut config);
        let adapter = random_adapter(&config, 1, 2, 1.0);
        let error = decoder.adapter_shapes().load(&adapter).unwrap_err().to_string();
        assert!(error.contains("adapter_model.safetensors"), "{error}");
        error
    };
    let error = refused(|config| config.num_hidden_layers = 4);
    assert!(error.contains("model.layers.3.") && error.contains("has 3 blocks"), "{error}");
    let error = refused(|config| config.hidden_size = 64);
    assert!(error.contains("[64, 160]") && error.contains("[96, 160]"), "{error}");
    let error = refused(|config| config.num_key_value_heads = 3);
    assert!(error.contains("k_proj") && error.contains("[96, 96]"), "{error}");
}
