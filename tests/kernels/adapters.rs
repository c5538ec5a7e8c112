//! LoRA adapters on the emulator: near what the CPU's decoder makes of them, and a row's bits whatever it is computed with.

use std::path::Path;
use std::sync::Arc;

use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::adapter::Adapter;
use pleach::engine::{Engine, EngineConfig, Request};
use pleach::model::{
    AdapterWeights, CudaDecoder, CudaRunner, Family, Forward, ModelConfig, Runner,
};
use pleach::sampling::SamplingParams;
use pleach_kernels::DType;
use pleach_kernels::cuda::{
    AdaptedRows, CudaError, Device, KvFormat, LowRankAdapter, LowRankFactors, LowRankLayout, Tensor,
};

use super::decoder::{
    AdaptersOf, BLOCKS, Formats, Outputs, Pass, adapted_outputs, config, device, distance, on_cuda,
    reference,
};
use super::families::gemma2;
use super::rounds::{run, settings, write_draft};
use super::support::adapter::write_adapter_of;
use super::support::pair::write_pair;
use super::support::random_model::write_model;

/// An adapter of all modules, and one of the projections that most adapters have alone.
fn random_adapters(config: &ModelConfig, seed: u64, ranks: [usize; 2], size: f32) -> [Adapter; 2] {
    let folder = tempfile::tempdir().unwrap();
    let few: [&dyn Fn(&str) -> bool; 2] =
        [&|_| true, &|name| name.ends_with("q_proj") || name.ends_with("v_proj")];
    [0, 1].map(|at| {
        let seed = seed.wrapping_add(at as u64);
        write_adapter_of(folder.path(), config, seed, ranks[at], size, few[at]);
        Adapter::read(folder.path()).unwrap()
    })
}

/// The first sequence goes through one adapter, the second through none, the third through the other.
fn of_sequences([one, two]: [AdapterWeights; 2]) -> AdaptersOf {
    [Some(Arc::new(one)), None, Some(Arc::new(two))]
}

fn loaded_on_cpu(runner: &Runner, adapters: &[Adapter; 2]) -> AdaptersOf {
    let shapes = runner.adapter_shapes().unwrap();
    of_sequences(adapters.each_ref().map(|adapter| shapes.load(adapter).unwrap()))
}

fn load_onto(decoder: &CudaDecoder, adapter: &Adapter) -> AdapterWeights {
    let layout = decoder.adapter_shapes().lay_out(adapter).unwrap();
    let loaded = layout.load(decoder.adapters()).unwrap();
    assert_eq!(loaded.bytes(), layout.bytes());
    loaded
}

fn loaded_on_cuda(runner: &CudaRunner, adapters: &[Adapter; 2]) -> AdaptersOf {
    of_sequences(adapters.each_ref().map(|adapter| load_onto(runner.decoder(), adapter)))
}

const NONE: AdaptersOf = [None, None, None];

/// Outputs of the same passes by a model's CPU and CUDA decoders, the latter's beside what it makes of no adapters.
fn all_outputs(
    device: &Arc<Device>,
    path: &Path,
    adapters: &[Adapter; 2],
    passes: &[Pass<'_>],
) -> [Vec<Outputs>; 3] {
    let cpu = Runner::new(reference(path, KvFormat::Float), BLOCKS);
    let (mut cpu, mut cuda) = (cpu, on_cuda(device, path));
    let on_cpu = loaded_on_cpu(&cpu, adapters);
    let on_cuda = loaded_on_cuda(&cuda, adapters);
    let all = |count| count;
    [
        adapted_outputs(&mut cpu, passes, all, &on_cpu),
        adapted_outputs(&mut cuda, passes, all, &on_cuda),
        adapted_outputs(&mut cuda, passes, all, &NONE),
    ]
}

/// Two adapters and none in one batch, of models whose biases, norms of outputs and formats differ, one of more ranks than
/// the kernel keeps sums of.
pub(crate) fn adapters_agree_with_the_cpu() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mixed = |name: &str| if name.contains("v_proj") { DType::Q8_0 } else { DType::BF16 };
    let models: [(ModelConfig, Formats<'_>, [usize; 2], f64); 4] = [
        (config(Family::Llama), &|_| DType::BF16, [3, 130], 0.03),
        (config(Family::Qwen2), &|_| DType::F16, [20, 8], 0.004),
        (config(Family::Qwen3), &mixed, [1, 16], 0.03),
        (gemma2(2), &|_| DType::BF16, [8, 5], 0.04),
    ];
    // Prompt chunks, then rows of all three.
    let passes: [Pass<'_>; 3] =
        [&[(0, 0, 9), (1, 0, 3)], &[(2, 0, 11)], &[(0, 9, 1), (1, 3, 5), (2, 11, 3)]];
    let others: [Pass<'_>; 4] =
        [&[(2, 0, 4), (0, 0, 10)], &[(2, 4, 9)], &[(1, 0, 8), (2, 13, 1)], &[(0, 9, 1)]];
    for (config, format, ranks, tolerance) in models {
        let seed = fastrand::u64(..);
        let name = format!("{:?}, ranks {ranks:?}, seed {seed}", config.family);
        write_model(&path, &config, seed, format, &|_| 1.0);
        let adapters = random_adapters(&config, seed, ranks, 0.5);
        let [expected, got, plain] = all_outputs(&device, &path, &adapters, &passes);
        let places: Vec<(usize, usize)> = places(&passes);
        let mut worst = 0.0f64;
        for (row, ((expected, got), plain)) in expected.iter().zip(&got).zip(&plain).enumerate() {
            let apart = distance(&expected.0, &got.0).max(distance(&expected.1, &got.1));
            // Not `apart > tolerance`: a NaN must fail.
            assert!(apart <= tolerance, "{name}, row {row}: {apart}");
            worst = worst.max(apart);
            if places[row].0 == 1 {
                assert!(got == plain, "{name}: row {row} goes through no adapter");
            } else {
                let does = distance(&plain.0, &got.0);
                assert!(does > 2.0 * tolerance, "{name}, row {row}: the adapter does {does}");
            }
        }
        println!("{name}: within {worst:.4} of the CPU's");
        let mut again = on_cuda(&device, &path);
        let loaded = loaded_on_cuda(&again, &adapters);
        let others_got = adapted_outputs(&mut again, &others, |count| count, &loaded);
        for (place, row) in self::places(&others).iter().zip(&others_got) {
            let known = places.iter().position(|other| other == place).unwrap();
            assert!(
                *row == got[known],
                "{name}: bits of sequence {}, position {}",
                place.0,
                place.1
            );
        }
    }
}

/// Sequence and position of each row.
fn places(passes: &[Pass<'_>]) -> Vec<(usize, usize)> {
    let pieces = passes.iter().flat_map(|pass| pass.iter());
    pieces
        .flat_map(|&(sequence, start, count)| (start..start + count).map(move |at| (sequence, at)))
        .collect()
}

/// Passes with adapters are recorded too: with the same bits, for whichever adapters the rows of a pass have, and apart from
/// passes without.
pub(crate) fn recorded_passes_go_through_their_adapters() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let config = config(Family::Qwen2);
    let seed = fastrand::u64(..);
    write_model(&path, &config, seed, &|_| DType::BF16, &|_| 1.0);
    let adapters = random_adapters(&config, seed, [6, 6], 0.5);
    let mut passes: Vec<Vec<(usize, usize, usize)>> = vec![vec![(0, 0, 2), (1, 0, 3), (2, 0, 2)]];
    passes.extend((0..6).map(|i| vec![(0, 2 + i, 1), (1, 3 + i, 1), (2, 2 + i, 1)]));
    let passes: Vec<Pass<'_>> = passes.iter().map(|pass| &pass[..]).collect();
    let all = |count| count;
    let mut plain = on_cuda(&device, &path).without_graphs();
    let mut runner = on_cuda(&device, &path);
    // In turns: all three, the two adapters the other way round, and none.
    let turned = |of: AdaptersOf| {
        let [one, none, two] = of;
        [none, two, one]
    };
    for round in 0..2 {
        let mut replayed = runner.replayed_passes();
        for turn in 0..3 {
            let of = |runner: &CudaRunner| match turn {
                0 => loaded_on_cuda(runner, &adapters),
                1 => turned(loaded_on_cuda(runner, &adapters)),
                _ => NONE,
            };
            let (own, other) = (of(&runner), of(&plain));
            let expected = adapted_outputs(&mut plain, &passes, all, &other);
            let got = adapted_outputs(&mut runner, &passes, all, &own);
            assert!(got == expected, "seed {seed}: bits, round {round}, turn {turn}");
            let before = std::mem::replace(&mut replayed, runner.replayed_passes());
            assert!(replayed >= before + 4, "round {round}, turn {turn}: {before} to {replayed}");
        }
    }
}

/// With a draft of either kind: two adapters and none in one batch say to the bit what each says alone without
/// speculation, also where prompts come in chunks, through an engine whose memory is planned.
pub(crate) fn speculation_with_adapters_changes_nothing() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    write_pair(folder.path(), &config(Family::Llama), 1.0);
    let path = |name: &str| folder.path().join(name);
    write_draft(&path("model.gguf"), &path("draft.gguf"));
    let seed = fastrand::u64(..);
    let open = |name: &str| Checkpoint::open(&path(name)).unwrap();
    let adapters = random_adapters(&open("model.gguf").config, seed, [4, 7], 0.1);
    let engine = |draft: Option<&str>, rows: usize| {
        let mut checkpoint = open("model.gguf");
        let target = CudaDecoder::load(&mut checkpoint, &device).unwrap();
        let draft = draft
            .map(|draft| target.lender().load_draft(&mut open(draft), &mut checkpoint).unwrap());
        let loaded = adapters.each_ref().map(|adapter| Arc::new(load_onto(&target, adapter)));
        let config = EngineConfig { max_num_batched_tokens: rows, max_num_seqs: 8, ..settings() };
        (Engine::on_cuda(target, draft, config).unwrap(), loaded)
    };
    let requests = |[one, two]: &[Arc<AdapterWeights>; 2]| -> Vec<Request> {
        let sampled = SamplingParams { seed: Some(9), ..SamplingParams::default() };
        let through = [None, Some(Arc::clone(one)), Some(Arc::clone(two))];
        let ask = |params: &SamplingParams, adapter: &Option<Arc<AdapterWeights>>| Request {
            params: params.clone(),
            adapter: adapter.clone(),
            ignore_eos: true,
            top_logprobs: Some(1),
            ..Request::greedy((0..11).map(|i| (5 + i * 7) % 131).collect(), 8)
        };
        let kinds = [SamplingParams::greedy(), sampled];
        kinds.iter().flat_map(|params| through.iter().map(|it| ask(params, it))).collect()
    };
    let (mut plain, loaded) = engine(None, 24);
    let alone: Vec<_> = requests(&loaded)
        .iter()
        .map(|request| run(&mut plain, std::slice::from_ref(request)).remove(0))
        .collect();
    for said in alone.chunks(3) {
        assert!(said[0] != said[1] && said[1] != said[2] && said[2] != said[0], "seed {seed}");
    }
    for (draft, rows) in [(None, 24), (Some("draft.gguf"), 24), (Some("attached.gguf"), 10)] {
        let (mut engine, loaded) = engine(draft, rows);
        assert_eq!(engine.has_draft_model(), draft.is_some());
        let said = run(&mut engine, &requests(&loaded));
        assert_eq!(said, alone, "seed {seed}, {draft:?}");
        let accepted = engine.stats().rounds.accepted_tokens;
        println!(
            "{draft:?}: {accepted} of {} tokens accepted",
            said.iter().map(Vec::len).sum::<usize>()
        );
    }
}

/// The memory of an adapter that nobody holds is free with the next pass of its model, and not before: a pass might be
/// recorded meanwhile.
pub(crate) fn given_up_adapters_are_freed_between_passes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let config = config(Family::Llama);
    write_model(&path, &config, 3, &|_| DType::BF16, &|_| 1.0);
    let device = device();
    let mut runner = on_cuda(&device, &path);
    let adapters = random_adapters(&config, 3, [16, 2], 0.5);
    let pass: [Pass<'_>; 1] = [&[(0, 0, 1)]];
    let loaded = loaded_on_cuda(&runner, &adapters);
    let bytes: Vec<usize> = loaded.iter().flatten().map(|adapter| adapter.bytes()).collect();
    let weak: Vec<_> = loaded.iter().flatten().map(Arc::downgrade).collect();
    adapted_outputs(&mut runner, &pass, |count| count, &loaded);
    std::thread::spawn(move || drop(loaded)).join().unwrap();
    assert!(weak.iter().all(|adapter| adapter.upgrade().is_none()));
    assert_eq!(runner.decoder().adapters().given_up_bytes(), bytes.iter().sum::<usize>());
    adapted_outputs(&mut runner, &pass, |count| count, &NONE);
    assert_eq!(runner.decoder().adapters().given_up_bytes(), 0);
}

/// Rows and tensors that do not fit the adapters are refused before anything is launched.
pub(crate) fn what_does_not_fit_is_refused() {
    let device = device();
    let layout = |shapes: &[[usize; 2]], rank: usize| {
        let factors: Vec<_> = shapes
            .iter()
            .map(|[outputs, inputs]| (vec![0.5; rank * inputs], vec![0.25; outputs * rank]))
            .collect();
        let factors = factors.iter().map(|(a, b)| Some(LowRankFactors { rank, scale: 1.0, a, b }));
        LowRankLayout::new(shapes.into(), &factors.collect::<Vec<_>>())
    };
    let adapter =
        |device, shapes: &[[usize; 2]]| LowRankAdapter::new(device, &layout(shapes, 3)).unwrap();
    let shapes = [[8, 32], [4, 32], [6, 64]];
    let own = adapter(&device, &shapes);
    let mut rows = AdaptedRows::new(&device).unwrap();
    let tensor = |dtype, [rows, cols]: [usize; 2]| Tensor::new(&device, dtype, rows, cols).unwrap();
    let refused = |result: Result<(), CudaError>, expected: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, CudaError::Argument { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let (x, mut out) = (tensor(DType::BF16, [4, 32]), tensor(DType::BF16, [4, 12]));
    refused(device.add_low_rank(&rows, 0..2, &x, &mut out), "no adapters of matrices 0..2");
    rows.set(4, [(1..3, &own)]).unwrap();
    device.add_low_rank(&rows, 0..2, &x, &mut out).unwrap();
    refused(device.add_low_rank(&rows, 1..3, &x, &mut out), "x is BF16 [4, 32]");
    refused(device.add_low_rank(&rows, 0..1, &x, &mut out), "out BF16 [4, 12]");
    refused(device.add_low_rank(&rows, 2..4, &x, &mut out), "no adapters of matrices 2..4");
    refused(device.add_low_rank(&rows, 0..2, &tensor(DType::BF16, [3, 32]), &mut out), "of 4 rows");
    refused(device.add_low_rank(&rows, 0..2, &tensor(DType::F16, [4, 32]), &mut out), "F16");
    let other = super::decoder::device();
    let foreign = adapter(&other, &shapes);
    refused(rows.set(4, [(1..3, &foreign)]), "of another device");
    let narrow = adapter(&device, &[[8, 32], [4, 32], [6, 32]]);
    refused(rows.set(4, [(0..1, &own), (1..3, &narrow)]), "of another model");
}
