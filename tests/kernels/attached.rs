//! The attached drafter on the emulator: its steps against the CPU's, with recorded passes and without, and engines on
//! whose device it drafts.

use std::path::Path;
use std::sync::Arc;

use pleach::checkpoint::Checkpoint;
use pleach::engine::{Candidate, Engine, EngineConfig, Outcome};
use pleach::kv_cache::{BlockPool, BlockTable};
use pleach::model::{
    CudaDecoder, CudaDraft, CudaRunner, Decoder, Draft, DraftInput, Drafter, Family, Forward,
    ModelConfig, Rows, Runner,
};
use pleach::speculation::Proposer;
use pleach_kernels::cuda::{Device, KvFormat};
use pleach_kernels::{DType, ThreadPool};

use super::decoder::{config, device, distance, reference};
use super::drawn;
use super::families::{gemma2, gemma3};
use super::rounds::{requests, run, settings};
use super::support::pair::write_pair;
use super::support::random_model::{random_tensor, write_attached, write_model};

/// Blocks and positions of a test's cache.
const BLOCKS: usize = 64;
const POSITIONS: usize = 300;

const FLOAT: KvFormat = KvFormat::Float;

fn deep(family: Family) -> ModelConfig {
    ModelConfig { num_hidden_layers: 4, ..config(family) }
}

/// Writes a random model and a drafter of some of its blocks, with about half of their neurons where the format has such rows,
/// which reads these states.
fn write_random(
    model: &Path,
    draft: &Path,
    config: &ModelConfig,
    seed: u64,
    dtype: DType,
    [blocks, states]: [&[u32]; 2],
) {
    write_model(model, config, seed, &|_| dtype, &|_| 1.0);
    let mut random = fastrand::Rng::with_seed(seed);
    let half = config.intermediate_size / 2;
    let neurons = half.next_multiple_of(dtype.block_size().max(32)).min(config.intermediate_size);
    write_attached(model, draft, blocks, neurons, states, &mut |shape| {
        random_tensor(&mut random, dtype, &shape, 1.0)
    });
}

/// What a model's drafter says: the states that it is given, which differ by a factor between kinds of memory, and logits.
type Said = Vec<(String, Vec<f32>)>;

/// Passes of a model over three sequences, one past a split of attention, and chains of its drafter behind rows of them that
/// stand.
fn chains(model: &mut dyn Forward, seed: u64) -> Said {
    let mut random = fastrand::Rng::with_seed(seed);
    let vocab = model.config().vocab_size as u32;
    let width = model.config().hidden_size;
    let mut pool = BlockPool::new(BLOCKS);
    let mut tables: [BlockTable; 3] = Default::default();
    for table in &mut tables {
        assert!(table.reserve(POSITIONS, &mut pool));
    }
    let mut said = Vec::new();
    let mut starts = [0; 3];
    for round in 0..4 {
        let mut rows = Rows::default();
        let mut stands = Vec::new();
        for (sequence, start) in starts.iter_mut().enumerate() {
            let count = if round == 0 { [9, 20, 262][sequence] } else { random.usize(1..5) };
            let wanted = random.usize(1..=count.min(4));
            let tokens: Vec<u32> = (0..count).map(|_| random.u32(..vocab)).collect();
            rows.push(&tables[sequence], *start, tokens, wanted);
            // Rows behind the one that stands were draft tokens that did not.
            let rejected = random.usize(..wanted);
            stands.push((rows.len() - 1 - rejected) as u32);
            *start += count - rejected;
        }
        model.forward(&rows).unwrap();
        let drafter = model.attached().unwrap();
        let head_rows = drafter.head_rows();
        let mut states = Vec::new();
        drafter.read_states(&stands, &mut states);
        for (place, state) in states.chunks_exact(width).enumerate() {
            let rms = (state.iter().map(|v| v * v).sum::<f32>() / width as f32).sqrt();
            let normed = state.iter().map(|value| value / rms).collect();
            said.push((format!("round {round}, state {place}"), normed));
        }
        // All chains, some of them in another order, and two that go on from one row.
        let steps: [(&[usize], &[u32]); 4] =
            [(&[0, 1, 2], &[]), (&[0, 1, 2], &[0, 1, 2]), (&[2, 0], &[2, 0]), (&[0, 1], &[1, 1])];
        let mut ends = starts;
        for (step, (sequences, from)) in steps.into_iter().enumerate() {
            rows.clear();
            for &sequence in sequences {
                rows.push(&tables[sequence], ends[sequence], [random.u32(..vocab)], 1);
                ends[sequence] += 1;
            }
            let input = match step {
                0 => DraftInput::Target(&states),
                _ => DraftInput::Own(from),
            };
            let logits = drafter.step(&rows, input).unwrap();
            assert_eq!(logits.len(), rows.len() * head_rows);
            said.extend(logits.chunks_exact(head_rows).zip(sequences).map(|(row, sequence)| {
                (format!("round {round}, step {step}, sequence {sequence}"), row.to_vec())
            }));
        }
    }
    said
}

fn on_cpu(model: &Path, draft: &Path, cache: KvFormat) -> Runner {
    let target = reference(model, cache);
    let pool = Arc::new(ThreadPool::new(1));
    let draft = Decoder::load_draft(&mut Checkpoint::open(draft).unwrap(), &target, &pool);
    let Ok(Draft::Attached(drafter)) = draft else { panic!("no attached draft") };
    let mut runner = Runner::new(target, BLOCKS);
    assert!(runner.attach(Some(Drafter::Cpu(drafter))).is_none());
    runner
}

fn load(
    device: &Arc<Device>,
    model: &Path,
    draft: &Path,
    cache: KvFormat,
) -> (CudaDecoder, Drafter) {
    let mut checkpoint = Checkpoint::open(model).unwrap();
    let target = CudaDecoder::load_with(&mut checkpoint, device, cache).unwrap();
    let mut draft = Checkpoint::open(draft).unwrap();
    let draft = target.lender().load_draft(&mut draft, &mut checkpoint).unwrap();
    let CudaDraft::Attached(drafter) = draft else { panic!("no attached draft") };
    (target, Drafter::Cuda(drafter))
}

fn on_cuda(device: &Arc<Device>, model: &Path, draft: &Path, cache: KvFormat) -> CudaRunner {
    let (target, drafter) = load(device, model, draft, cache);
    let mut runner = CudaRunner::new(target, BLOCKS, POSITIONS).unwrap();
    assert!(runner.attach(Some(drafter)).is_none());
    runner
}

/// Random models of several formats: the states and logits of all steps are near those of the CPU's drafter.
pub(crate) fn steps_agree_with_the_cpu() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let (model, draft) = (folder.path().join("model.gguf"), folder.path().join("draft.gguf"));
    let wide = ModelConfig {
        hidden_size: 256,
        intermediate_size: 256,
        num_attention_heads: 4,
        ..deep(Family::Llama)
    };
    let models = vec![
        (deep(Family::Llama), DType::BF16, FLOAT, [&[1, 3][..], &[1, 3, 4]], 0.05),
        (deep(Family::Qwen2), DType::F16, FLOAT, [&[3], &[4]], 0.01),
        (deep(Family::Qwen3), DType::Q8_0, FLOAT, [&[0, 2, 3], &[0, 2]], 0.06),
        (deep(Family::Qwen3), DType::F16, KvFormat::Int8, [&[0, 3], &[1, 4]], 0.1),
        (wide, DType::Q4_K, FLOAT, [&[2, 3], &[2, 4]], 0.08),
        (gemma3(4), DType::BF16, FLOAT, [&[1, 2], &[1, 4]], 0.1),
        (gemma2(4), DType::Q8_0, FLOAT, [&[0, 3], &[0, 3]], 0.1),
    ];
    for (config, dtype, cache, blocks_and_states, tolerance) in drawn(models, 4) {
        let seed = fastrand::u64(..);
        let name = format!("{:?} in {dtype:?}, {cache:?} cache, seed {seed}", config.family);
        write_random(&model, &draft, &config, seed, dtype, blocks_and_states);
        let expected = chains(&mut on_cpu(&model, &draft, cache), seed);
        let said = chains(&mut on_cuda(&device, &model, &draft, cache), seed);
        let mut worst = 0.0f64;
        assert_eq!(said.len(), expected.len());
        for ((what, expected), (_, said)) in expected.iter().zip(&said) {
            let apart = distance(expected, said);
            // Not `apart > tolerance`: a NaN must fail.
            assert!(apart <= tolerance, "{name}: {what} is {apart} from the CPU's");
            worst = worst.max(apart);
        }
        println!("{name}: steps within {worst:.4} of the CPU's");
    }
}

/// Steps that repeat are recorded and replayed: the same bits as launch by launch, and none of another drafter.
pub(crate) fn recorded_steps_are_the_same() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let [model, draft, other] =
        ["model.gguf", "draft.gguf", "other.gguf"].map(|name| folder.path().join(name));
    let seed = fastrand::u64(..);
    let config = deep(Family::Qwen2);
    write_random(&model, &other, &config, seed, DType::BF16, [&[1, 2], &[0, 4]]);
    write_random(&model, &draft, &config, seed, DType::BF16, [&[0, 3], &[2, 3]]);
    let expected = chains(&mut on_cuda(&device, &model, &draft, FLOAT).without_graphs(), seed);
    let mut runner = on_cuda(&device, &model, &draft, FLOAT);
    // Three times, after which every pass and step was recorded.
    for round in 0..3 {
        assert!(chains(&mut runner, seed) == expected, "seed {seed}: bits, round {round}");
    }
    assert!(runner.replayed_steps() > 16, "{} steps", runner.replayed_steps());
    let first = runner.attach(Some(load(&device, &model, &other, FLOAT).1));
    let others = chains(&mut runner, seed);
    let mut plain = on_cuda(&device, &model, &other, FLOAT).without_graphs();
    assert!(chains(&mut plain, seed) == others, "seed {seed}: bits of another drafter");
    assert_eq!(plain.replayed_steps(), 0);
    assert!(others != expected);
    runner.attach(first);
    assert!(chains(&mut runner, seed) == expected, "seed {seed}: bits of the first again");
}

/// An engine on the device whose target has the drafter, or none.
fn engine(device: &Arc<Device>, folder: &Path, drafts: bool, config: EngineConfig) -> Engine {
    engine_with(device, folder, FLOAT, drafts, config)
}

fn engine_with(
    device: &Arc<Device>,
    folder: &Path,
    cache: KvFormat,
    drafts: bool,
    config: EngineConfig,
) -> Engine {
    let [model, draft] = ["model.gguf", "attached.gguf"].map(|name| folder.join(name));
    let (target, drafter) = load(device, &model, &draft, cache);
    let mut target = CudaRunner::new(target, config.num_blocks.unwrap(), 64).unwrap();
    if drafts {
        target.attach(Some(drafter));
    }
    Engine::with_models(Box::new(target), None, config).unwrap()
}

/// The same tokens and log-probabilities, bit for bit, with the drafter and without: alone and together, in chunks, and in a
/// cache so small that sequences are turned out; and draft tokens are accepted.
pub(crate) fn an_attached_drafter_on_cuda_leaves_no_trace() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    for (config, cache) in [
        (config(Family::Qwen3), FLOAT),
        (config(Family::Qwen3), KvFormat::Int8),
        (gemma3(3), FLOAT),
    ] {
        write_pair(folder.path(), &config, 1.0);
        leaves_no_trace(&device, folder.path(), cache);
    }
}

fn leaves_no_trace(device: &Arc<Device>, folder: &Path, cache: KvFormat) {
    let requests = requests();
    let mut plain = engine_with(device, folder, cache, false, settings());
    assert!(!plain.has_draft_model());
    let expected: Vec<_> =
        requests.iter().map(|r| run(&mut plain, std::slice::from_ref(r)).remove(0)).collect();
    for (max_num_batched_tokens, num_blocks, adaptive) in
        [(512, BLOCKS, false), (5, BLOCKS, false), (512, 5, false), (512, BLOCKS, true)]
    {
        let config = EngineConfig {
            max_num_batched_tokens,
            num_blocks: Some(num_blocks),
            adaptive,
            ..settings()
        };
        let mut engine = engine_with(device, folder, cache, true, config);
        engine.profile();
        let case = format!("{max_num_batched_tokens} rows, {num_blocks} blocks");
        assert_eq!(run(&mut engine, &requests), expected, "{case}");
        let drafted = engine.stats().rounds.proposer(Proposer::DraftModel);
        println!("{case}: {drafted:?}");
        assert!(adaptive || drafted.accepted_tokens > 10, "{case}: {drafted:?}");
        assert_eq!(engine.stats().draft_failures, 0, "{case}");
    }
}

/// A drafter is compared with the one that serves, on the device of both, and neither leaves a trace.
pub(crate) fn attached_drafters_on_cuda_are_compared() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let bad = tempfile::tempdir().unwrap();
    write_pair(folder.path(), &config(Family::Llama), 1.0);
    write_pair(bad.path(), &config(Family::Llama), 0.0);
    let requests = &requests()[..4];
    let mut plain = engine(&device, folder.path(), false, settings());
    let expected = run(&mut plain, requests);
    let mut engine = engine(&device, bad.path(), true, settings());
    engine.profile();
    let [model, draft] = ["model.gguf", "attached.gguf"].map(|name| folder.path().join(name));
    let better = load(&device, &model, &draft, FLOAT).1;
    engine.compare("better".into(), Candidate::Attached(better), 20).unwrap();
    assert_eq!(run(&mut engine, requests), expected, "while they are compared");
    let compared = engine.comparison().unwrap();
    println!("{compared:?}");
    // Which one promises more speed depends on what steps took.
    assert!(matches!(compared.outcome, Some(Outcome::Switched | Outcome::Refused)), "{compared:?}");
    let current = compared.current.as_ref().unwrap().accepted_tokens;
    assert!(compared.candidate.accepted_tokens > current + 5, "{compared:?}");
    assert_eq!(run(&mut engine, requests), expected, "afterwards");
    assert_eq!(engine.stats().draft_failures, 0);
}

/// A matrix that cannot be cut where the token ends is named, and so is what a drafter lacks of its target.
pub(crate) fn drafters_that_do_not_fit_are_refused() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let (model, draft) = (folder.path().join("model.gguf"), folder.path().join("draft.gguf"));
    write_model(&model, &config(Family::Llama), 1, &|_| DType::BF16, &|_| 1.0);
    let refused = |dtype, blocks: &[u32], states: &[u32]| {
        let mut random = fastrand::Rng::with_seed(2);
        write_attached(&model, &draft, blocks, 96, states, &mut |shape| {
            random_tensor(&mut random, dtype, &shape, 1.0)
        });
        let mut checkpoint = Checkpoint::open(&model).unwrap();
        let target = CudaDecoder::load(&mut checkpoint, &device).unwrap();
        let mut draft = Checkpoint::open(&draft).unwrap();
        let loaded = target.lender().load_draft(&mut draft, &mut checkpoint);
        loaded.err().unwrap().to_string()
    };
    let error = refused(DType::Q4_K, &[1], &[2]);
    assert!(error.contains("attached.first.weight") && error.contains("128 inputs"), "{error}");
    let error = refused(DType::BF16, &[1, 0], &[2]);
    assert!(error.contains("blocks [1, 0] are not 2 of 2"), "{error}");
    let error = refused(DType::BF16, &[1], &[3]);
    assert!(error.contains("states [3]"), "{error}");
}
