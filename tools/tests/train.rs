//! Training: the differentiable decoder is the serving decoder, its gradients are slopes, and a run
//! learns, stops and goes on.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use pleach::checkpoint::{Checkpoint, source};
use pleach::kv_cache::{BlockPool, BlockTable};
use pleach::model::{
    Attachment, Decoder, Design, ModelConfig, PROJECTIONS, Precision, RopeConfig, RopeScaling,
    Rows, Workspace,
};
use pleach_kernels::training::Divergence;
use pleach_kernels::{Activation, DType, ThreadPool};
use pleach_train::{
    Adapt, AttachedLesson, AttachedNetwork, Backend, Budget, Dataset, Distillation, Example,
    Lesson, Network, Options, Parameters, TargetStates, TopKWriter, Trainer, TrainingBatch, Weight,
    Weights, block_weights,
};

fn checkpoint() -> Checkpoint {
    let source = source::DEFAULT_MODEL.parse::<source::Source>().unwrap();
    Checkpoint::open(&source::resolve(&source, &source::default_cache_dir()).unwrap()).unwrap()
}

/// Our own kernels, and candle's operations, which devices use.
fn backends() -> [Backend; 2] {
    [Backend::processor(), Backend::composed(candle_core::Device::Cpu)]
}

/// Two packed sequences give the logits that serving gives each of them, in models of several designs.
#[test]
fn network_agrees_with_the_serving_decoder() {
    agrees_with_serving(checkpoint());
    for name in ["gemma2", "gemma3", "smollm3", "phi3"] {
        let goldens = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
        agrees_with_serving(Checkpoint::open(&goldens.join(name)).unwrap());
    }
}

fn agrees_with_serving(mut checkpoint: Checkpoint) {
    let pool = Arc::new(ThreadPool::new(2));
    let decoder = Decoder::load_with(&mut checkpoint, &pool, Precision::F32).unwrap();
    let weights = block_weights(&mut checkpoint).unwrap();
    let embedding = checkpoint.tensor("model.embed_tokens.weight").unwrap().to_f32();
    let config = checkpoint.config.clone();
    let vocab = config.vocab_size;
    let head = match config.tie_word_embeddings {
        true => embedding.clone(),
        false => checkpoint.tensor("lm_head.weight").unwrap().to_f32(),
    };
    let tokens = (vocab as u32).min(40_000);
    let sequences: [Vec<u32>; 2] = [
        (0..40).map(|i| i * 97 % tokens).collect(),
        (0..23).map(|i| (5 + i * 31) % tokens).collect(),
    ];
    let mut batch = TrainingBatch::default();
    for sequence in &sequences {
        let start = batch.tokens.len();
        batch.tokens.extend(sequence);
        batch.sequences.push(start..batch.tokens.len());
    }
    let logits = backends().map(|backend| {
        let parameters = Parameters::new(weights.clone(), Adapt::Full, 0, backend.clone()).unwrap();
        let network =
            Network::new(config.clone(), embedding.clone(), head.clone(), &backend).unwrap();
        let logits = network.logits(&parameters.leaves().unwrap(), &batch).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    });

    let (mut cache, mut workspace) = (decoder.new_kv_cache(8), Workspace::new());
    let mut start = 0;
    for sequence in &sequences {
        let (mut blocks, mut table) = (BlockPool::new(8), BlockTable::default());
        assert!(table.reserve(sequence.len(), &mut blocks));
        let mut rows = Rows::default();
        rows.push(&table, 0, sequence.iter().copied(), sequence.len());
        let served = decoder.forward(&rows, &mut cache, &mut workspace);
        // bfloat16 products through 30 blocks where the machine has them; those that candle composes are of f32.
        for (logits, most) in logits.iter().zip([0.03, 1e-4]) {
            let trained = &logits[start * vocab..][..served.len()];
            let difference: f64 =
                served.iter().zip(trained).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let size: f64 = served.iter().map(|a| f64::from(*a).powi(2)).sum();
            let error = (difference / size).sqrt();
            println!("relative difference {error:.6}");
            assert!(error < most, "relative difference {error}");
        }
        start += sequence.len();
    }
}

/// A small model with every feature: grouped heads, query/key norms, biases, a window.
fn small() -> (ModelConfig, Vec<Weight>, Vec<f32>) {
    let mut config = checkpoint().config;
    config.hidden_size = 64;
    config.intermediate_size = 96;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 32;
    config.vocab_size = 50;
    config.sliding_window = Some(pleach::model::SlidingWindow::from_layer(6, 1, 2));
    let mut random = fastrand::Rng::with_seed(3);
    let mut values = |len: usize, scale: f32| -> Vec<f32> {
        (0..len).map(|_| (random.f32() - 0.5) * 2.0 * scale).collect()
    };
    let mut weights = Vec::new();
    for layer in 0..2 {
        for (module, shape) in [
            ("self_attn.q_proj", vec![128, 64]),
            ("self_attn.k_proj", vec![64, 64]),
            ("self_attn.v_proj", vec![64, 64]),
            ("self_attn.o_proj", vec![64, 128]),
            ("mlp.gate_proj", vec![96, 64]),
            ("mlp.up_proj", vec![96, 64]),
            ("mlp.down_proj", vec![64, 96]),
            ("input_layernorm", vec![64]),
            ("post_attention_layernorm", vec![64]),
            ("self_attn.q_norm", vec![32]),
            ("self_attn.k_norm", vec![32]),
        ] {
            let len = shape.iter().product();
            let mut data = values(len, 0.2);
            if shape.len() == 1 {
                data.iter_mut().for_each(|v| *v += 1.0);
            }
            weights.push((format!("model.layers.{layer}.{module}.weight"), shape, data));
        }
        for (module, len) in [("q", 128), ("k", 64), ("v", 64)] {
            let name = format!("model.layers.{layer}.self_attn.{module}_proj.bias");
            weights.push((name, vec![len], values(len, 0.1)));
        }
    }
    weights.push(("model.norm.weight".into(), vec![64], vec![1.0; 64]));
    let embedding = values(50 * 64, 0.4);
    (config, weights, embedding)
}

/// The small model as a Gemma: caps, an activation, a rotary embedding for windows, norms of outputs.
fn small_gemma() -> (ModelConfig, Vec<Weight>, Vec<f32>) {
    let (mut config, mut weights, embedding) = small();
    config.design = Design {
        activation: Activation::GeluTanh,
        output_norms: true,
        norms_from_one: true,
        embedding_scale: Some(2.0),
        query_scalar: Some(20.0),
        score_cap: Some(2.0),
        logit_cap: Some(5.0),
        local_rope: Some(RopeConfig { theta: 100.0, scaling: RopeScaling::None }),
        ..Design::default()
    };
    for (_, _, values) in weights.iter_mut().filter(|(name, ..)| name.ends_with("norm.weight")) {
        values.iter_mut().for_each(|value| *value -= 1.0);
    }
    for layer in 0..2 {
        for place in ["pre", "post"] {
            let name = format!("model.layers.{layer}.{place}_feedforward_layernorm.weight");
            let values = (0..64u8).map(|at| 0.01 * f32::from(at % 7)).collect();
            weights.push((name, vec![64], values));
        }
    }
    (config, weights, embedding)
}

/// Twelve answers whose every token is the one before plus one; the target is almost sure of it. The last has one token.
fn counting(folder: &std::path::Path) -> Dataset {
    let (answers, top) = (folder.join("answers.jsonl"), folder.join("answers.topk"));
    let mut lines = String::new();
    let mut writer = TopKWriter::open(&top, 2, 0).unwrap();
    for i in 0..12u32 {
        let prompt: Vec<u32> = (0..3 + i % 4).map(|t| (i * 3 + t) % 50).collect();
        let next = prompt.last().unwrap() + 1;
        let count = if i < 11 { 9 } else { 1 };
        let response: Vec<u32> = (0..count).map(|t| (next + t) % 50).collect();
        for token in &response {
            writer.push(&[(*token, 0.9f32.ln()), ((token + 25) % 50, 0.1f32.ln())]).unwrap();
        }
        let example = Example {
            id: i.to_string(),
            category: String::new(),
            turns: vec![String::new()],
            response: String::new(),
            prompt_tokens: prompt,
            response_tokens: response,
            finish_reason: "length".into(),
            temperature: 0.0,
            origin: None,
        };
        lines += &format!("{}\n", serde_json::to_string(&example).unwrap());
    }
    writer.flush().unwrap();
    std::fs::write(&answers, lines).unwrap();
    Dataset::read(&answers, Some(&top), 64, 50).unwrap()
}

/// Answers of two files are those of both, each with its own distributions.
#[test]
fn answers_of_several_files_are_learnt_from() {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (mut both, alone) = (counting(one.path()), counting(two.path()));
    let other = two.path().join("answers.topk");
    // The second file's distributions are of other tokens.
    std::fs::remove_file(&other).unwrap();
    let mut writer = TopKWriter::open(&other, 1, 0).unwrap();
    (0..alone.num_tokens()).for_each(|_| writer.push(&[(7, 0.0)]).unwrap());
    writer.flush().unwrap();
    let answers = two.path().join("answers.jsonl");
    let second = Dataset::read(&answers, Some(&other), 64, 50).unwrap();
    let head_row: Vec<_> = (0..50).map(Some).collect();
    let targets = |data: &Dataset, index| format!("{:?}", data.batch(&[index], &head_row).unwrap());
    let (of_first, of_second) = (targets(&both, 3), targets(&second, 3));
    let tokens = both.num_tokens() + second.num_tokens();
    let first = both.len();
    both.append(second);
    assert_eq!((both.len(), both.num_tokens()), (2 * first, tokens));
    assert_eq!(
        (targets(&both, 3), targets(&both, first + 3)),
        (of_first.clone(), of_second.clone())
    );
    assert_ne!(of_first, of_second);
    assert!(both.frequent_tokens(3, 50, &[]).unwrap().contains(&7));
}

fn options(steps: u32) -> Options {
    Options {
        budget: Budget::Steps(steps),
        learning_rate: 3e-3,
        rows: 40,
        accumulation: 3,
        threads: 2,
        validation: 0.1,
        seed: 1,
        ..Options::default()
    }
}

fn trainer(folder: &std::path::Path, adapt: Adapt, steps: u32) -> Trainer<Distillation> {
    trainer_with(folder, adapt, options(steps), Backend::processor(), None)
}

fn trainer_with(
    folder: &std::path::Path,
    adapt: Adapt,
    options: Options,
    backend: Backend,
    rounding: Option<DType>,
) -> Trainer<Distillation> {
    let (config, weights, embedding) = small();
    let network = Network::new(config, embedding.clone(), embedding, &backend).unwrap();
    let mut parameters = Parameters::new(weights, adapt, 7, backend).unwrap();
    parameters.round_to(rounding);
    let head_row = (0..50).map(Some).collect();
    let data = counting(folder);
    let lesson = Distillation { network, data, head_row, divergence: Divergence::FORWARD_KL };
    Trainer::new(lesson, parameters, options).unwrap()
}

/// The loss falls along the gradient as fast as the gradient says, for every weight array.
#[test]
fn gradients_are_slopes() {
    let folder = tempfile::tempdir().unwrap();
    let data = counting(folder.path());
    for backend in backends() {
        for (config, weights, embedding) in [small(), small_gemma()] {
            let network = Network::new(config, embedding.clone(), embedding, &backend).unwrap();
            let head_row: Vec<_> = (0..50).map(Some).collect();
            let batch = data.batch(&[0, 1, 2, 3, 4], &head_row).unwrap();
            let loss = |weights: &Weights| network.loss_sum(weights, &batch).unwrap();
            assert_slopes(&weights, &backend, loss);
        }
    }
}

/// The same for an attached drafter: through three steps of its chains, on its own states.
#[test]
fn gradients_of_chains_are_slopes() {
    for backend in backends() {
        chains_have_slopes(small(), &backend);
        chains_have_slopes(small_gemma(), &backend);
    }
}

fn chains_have_slopes(
    (config, mut weights, embedding): (ModelConfig, Vec<Weight>, Vec<f32>),
    backend: &Backend,
) {
    let folder = tempfile::tempdir().unwrap();
    let attachment = Attachment { blocks: vec![4, 5], states: vec![2, 6] };
    let mut random = fastrand::Rng::with_seed(5);
    for (name, inputs) in PROJECTIONS.into_iter().zip([3 * 64, 2 * 64]) {
        let values = (0..64 * inputs).map(|_| (random.f32() - 0.5) * 0.3).collect();
        weights.push((name.into(), vec![64, inputs], values));
    }
    let data = counting(folder.path());
    let path = folder.path().join("states");
    let width = AttachedNetwork::state_width(&config, &attachment);
    let positions = data.sequences().map(<[u32]>::len).sum();
    let open = |identity| TargetStates::open(&path, identity, width, positions).unwrap();
    assert!(open("a").is_none());
    TargetStates::write(&path, "a", |writer| {
        let mut value = || random.f32() * 2.0 - 1.0;
        (0..positions)
            .try_for_each(|_| writer.push(&(0..width).map(|_| value()).collect::<Vec<_>>()))
    })
    .unwrap();
    assert!(open("b").is_none(), "another model's or other answers'");
    let head_row = (0..50).map(Some).collect();
    let head = embedding.clone();
    let network =
        AttachedNetwork { config, attachment, embedding, head, head_row, backend: backend.clone() };
    let kl = Divergence::FORWARD_KL;
    let lesson = AttachedLesson::new(network, data, open("a").unwrap(), 3, kl).unwrap();
    let loss = |weights: &Weights| lesson.loss(weights, &[0, 1, 2, 3, 4], true).unwrap().0;
    assert_slopes(&weights, backend, loss);

    // Low-rank additions begin at the weights themselves, and all of them move.
    let [full, low] = [Adapt::Full, Adapt::Lora { rank: 4, alpha: 8.0 }]
        .map(|adapt| Parameters::new(weights.clone(), adapt, 0, backend.clone()).unwrap())
        .map(|parameters| parameters.leaves().unwrap());
    let value = |weights| loss(weights).to_scalar::<f32>().unwrap();
    assert!((value(&low) / value(&full) - 1.0).abs() < 1e-3, "{} {}", value(&low), value(&full));
    let store = loss(&low).backward().unwrap();
    for (name, shape, _) in &weights {
        if shape.len() == 2 {
            let b = low.get(&format!("{name}.lora_b")).unwrap();
            assert!(store.get(b).is_some(), "no gradient of {name}");
        }
    }

    // An answer of one token begins no chain, and holds up no run.
    assert_eq!((lesson.teaches(10), lesson.teaches(11)), (true, false));
    let parameters = Parameters::new(weights, Adapt::Full, 0, backend.clone()).unwrap();
    let mut run = Trainer::new(lesson, parameters, options(3)).unwrap();
    while run.progress() < 1.0 {
        assert!(run.step().unwrap().loss.is_finite());
    }
    assert_eq!(run.split(), (2, 9));
}

/// A network with low-rank additions computes what one of the sums does.
#[test]
fn low_rank_additions_are_those_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = trainer(folder.path(), Adapt::Lora { rank: 8, alpha: 32.0 }, 20);
    let start = run.parameters().weights().unwrap();
    while run.progress() < 1.0 {
        run.step().unwrap();
    }
    let head_row: Vec<_> = (0..50).map(Some).collect();
    let batch = run.lesson().data().batch(&[0, 1, 2, 3], &head_row).unwrap();
    let logits = |parameters: &Parameters| {
        let logits = run.lesson().network.logits(&parameters.leaves().unwrap(), &batch).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let of =
        |weights| logits(&Parameters::new(weights, Adapt::Full, 0, Backend::processor()).unwrap());
    let distance = |a: &[f32], b: &[f32]| {
        let square = |all: &mut dyn Iterator<Item = f32>| all.map(|v| v * v).sum::<f32>();
        let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
        (difference / square(&mut a.iter().copied())).sqrt()
    };
    let (summed, own) = (of(run.parameters().weights().unwrap()), logits(run.parameters()));
    assert!(distance(&summed, &own) < 0.03, "{}", distance(&summed, &own));
    assert!(distance(&summed, &of(start)) > 0.3, "it was trained");
}

/// For every weight array, `loss` falls along its gradient as fast as the gradient says.
fn assert_slopes(
    weights: &[Weight],
    backend: &Backend,
    loss: impl Fn(&Weights) -> candle_core::Tensor,
) {
    let leaves_of = |weights: Vec<Weight>| {
        Parameters::new(weights, Adapt::Full, 0, backend.clone()).unwrap().leaves().unwrap()
    };
    let leaves = leaves_of(weights.to_vec());
    let store = loss(&leaves).backward().unwrap();
    let at = |moved: Vec<Weight>| f64::from(loss(&leaves_of(moved)).to_scalar::<f32>().unwrap());
    for (index, (name, ..)) in weights.iter().enumerate() {
        let gradient =
            store.get(leaves.get(name).unwrap()).unwrap_or_else(|| panic!("no gradient of {name}"));
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let step = 0.1;
        let moved = |direction: f64| {
            let mut all = weights.to_vec();
            for (w, g) in all[index].2.iter_mut().zip(&gradient) {
                *w += (direction * step * f64::from(*g) / norm) as f32;
            }
            at(all)
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        // The products are rounded to bfloat16, hence the absolute part.
        assert!((slope - norm).abs() < 0.08 * norm + 2.0, "{name}: slope {slope}, norm {norm}");
    }
}

#[test]
fn a_run_learns_and_goes_on_where_it_stood() {
    let folder = tempfile::tempdir().unwrap();
    for adapt in [Adapt::Full, Adapt::Lora { rank: 8, alpha: 32.0 }] {
        let mut whole = trainer(folder.path(), adapt, 60);
        let mut points = Vec::new();
        let (before, _) = whole.validate().unwrap().unwrap();
        while whole.progress() < 1.0 {
            points.push(whole.step().unwrap());
            if points.len() == 20 {
                whole.save(&folder.path().join("state")).unwrap();
            }
        }
        let (after, agreement) = whole.validate().unwrap().unwrap();
        println!("{adapt:?}: validation loss {before:.3} to {after:.3}, agreement {agreement:.3}");
        assert!(points.iter().all(|p| p.loss.is_finite()));
        assert!(
            points[59].loss < 0.6 * points[0].loss,
            "{} to {}",
            points[0].loss,
            points[59].loss
        );

        let mut resumed = trainer(folder.path(), adapt, 60);
        resumed.resume(&folder.path().join("state")).unwrap();
        for expected in &points[20..] {
            let got = resumed.step().unwrap();
            assert_eq!(
                (got.step, got.loss, got.tokens),
                (expected.step, expected.loss, expected.tokens)
            );
        }
        assert_eq!(resumed.parameters().weights().unwrap(), whole.parameters().weights().unwrap());
    }
    let state = folder.path().join("state");
    let refused = |adapt| trainer(folder.path(), adapt, 1).resume(&state).unwrap_err().to_string();
    assert!(refused(Adapt::Full).contains("has no model.layers.0"), "{}", refused(Adapt::Full));
    let adapt = Adapt::Lora { rank: 4, alpha: 32.0 };
    assert!(refused(adapt).contains("another size"), "{}", refused(adapt));
    let whole = std::fs::read(&state).unwrap();
    for (bytes, reason) in [
        (&whole[..whole.len() - 1], "state: "),
        (&whole[..7], "state: "),
        (&whole[..40], "is cut short"),
        (&b"\x02\0\0\0\0\0\0\0{}"[..], "has no state"),
        (&b"\x02\0\0\0\0\0\0\0[]"[..], "state: "),
    ] {
        std::fs::write(&state, bytes).unwrap();
        let refused = refused(Adapt::Lora { rank: 8, alpha: 32.0 });
        assert!(refused.contains(reason), "{refused}");
    }
}

/// A run by candle's operations takes the course of one by our own, rounded as it will be packed or not.
#[test]
fn backends_take_the_same_course() {
    let folder = tempfile::tempdir().unwrap();
    for rounding in [None, Some(DType::Q4_0)] {
        for adapt in [Adapt::Full, Adapt::Lora { rank: 8, alpha: 32.0 }] {
            let [own, composed] = backends().map(|backend| {
                let mut run = trainer_with(folder.path(), adapt, options(30), backend, rounding);
                let points: Vec<_> = (0..30).map(|_| run.step().unwrap()).collect();
                (points, run.validate().unwrap().unwrap())
            });
            for (own, composed) in own.0.iter().zip(&composed.0) {
                let ratio = composed.loss / own.loss;
                assert!(
                    (ratio - 1.0).abs() < 0.05,
                    "{rounding:?}, {adapt:?}: {own:?} {composed:?}"
                );
                assert_eq!((own.tokens, own.epoch), (composed.tokens, composed.epoch));
            }
            let (before, after) = (own.0[0].loss, composed.0[29].loss);
            assert!(after < 0.9 * before, "{before} to {after}");
            assert!((composed.1.0 / own.1.0 - 1.0).abs() < 0.05, "{own:?} {composed:?}");
        }
    }
}

/// Threads share batches, and the rows of a batch where there are more threads than batches: never the bits.
#[test]
fn threads_do_not_change_a_run() {
    let folder = tempfile::tempdir().unwrap();
    // Batches of some rows, and one of more rows than a piece has.
    for (rows, accumulation) in [(40, 3), (400, 1)] {
        for adapt in [Adapt::Full, Adapt::Lora { rank: 8, alpha: 32.0 }] {
            let run = |threads| {
                let options = Options { rows, accumulation, threads, ..options(4) };
                let mut run =
                    trainer_with(folder.path(), adapt, options, Backend::processor(), None);
                let losses: Vec<f64> = (0..4).map(|_| run.step().unwrap().loss).collect();
                (losses, run.validate().unwrap(), run.parameters().weights().unwrap())
            };
            let alone = run(1);
            for threads in [2, 3, 7] {
                assert!(run(threads) == alone, "{threads} threads, {rows} rows, {adapt:?}");
            }
        }
    }
}
