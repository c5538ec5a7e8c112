//! The CUDA decoder on the emulator: small random models against the CPU's decoder, and a row's bits whatever it is
//! computed with.

use std::path::Path;
use std::sync::Arc;

use pleach::checkpoint::Checkpoint;
use pleach::kv_cache::{BlockPool, BlockTable};
use pleach::model::{
    AdapterWeights, CudaDecoder, CudaRunner, Decoder, Design, Family, Forward, ModelConfig,
    Precision, RopeConfig, RopeScaling, Rows, Runner, SlidingWindow,
};
use pleach_kernels::cuda::{
    CudaError, Delta, Device, HostBuffer, KvFormat, KvLayer, Staging, Tensor, Weights, foreign,
};
use pleach_kernels::{Activation, CacheFormat, DType, ThreadPool};

use super::support::random_model::write_model;

/// The emulator as a device.
pub(crate) fn device() -> Arc<Device> {
    Device::open(0).unwrap()
}

pub(crate) fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        vocab_size: 131,
        hidden_size: 128,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        max_position_embeddings: 512,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: None,
        design: Design::default(),
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    }
}

/// The format of each matrix, by its name.
pub(crate) type Formats<'a> = &'a dyn Fn(&str) -> DType;

/// Pieces of sequences that make one pass: sequence, first position, length.
pub(crate) type Pass<'a> = &'a [(usize, usize, usize)];

/// Logits of a row, empty where none are wanted, and its hidden state behind the final norm.
pub(crate) type Outputs = (Vec<f32>, Vec<f32>);

/// Rows with logits at the end of a piece of so many.
type Wanted = fn(usize) -> usize;

/// Outputs of every row of each pass over three sequences of 300 positions; of each piece's rows, so many at its end
/// have logits.
fn outputs(model: &mut dyn Forward, passes: &[Pass<'_>], num_logits: Wanted) -> Vec<Outputs> {
    adapted_outputs(model, passes, num_logits, &[None, None, None])
}

/// The adapter of each of three sequences.
pub(crate) type AdaptersOf = [Option<Arc<AdapterWeights>>; 3];

/// The same of sequences that go through adapters.
pub(crate) fn adapted_outputs(
    model: &mut dyn Forward,
    passes: &[Pass<'_>],
    num_logits: Wanted,
    adapters: &AdaptersOf,
) -> Vec<Outputs> {
    let (vocab, width) = (model.head_rows(), model.config().hidden_size);
    let mut pool = BlockPool::new(BLOCKS);
    let mut tables: [BlockTable; 3] = Default::default();
    for table in &mut tables {
        assert!(table.reserve(300, &mut pool));
    }
    let mut out = Vec::new();
    for pass in passes {
        let mut rows = Rows::default();
        rows.clear();
        for &(sequence, start, count) in *pass {
            let token = |p: usize| ((p * 37 + sequence * 11 + p * p) % vocab) as u32;
            let tokens = (start..start + count).map(token);
            rows.push(&tables[sequence], start, tokens, num_logits(count));
            if let Some(adapter) = &adapters[sequence] {
                rows.adapt_last(adapter);
            }
        }
        let logits = model.forward(&rows).unwrap().to_vec();
        assert_eq!(logits.len(), rows.logit_rows.len() * vocab);
        let mut logits = logits.chunks_exact(vocab);
        out.extend((0..rows.len()).map(|row| {
            let mut hidden = vec![f32::NAN; width];
            model.hidden_state(row, &mut hidden);
            let wanted = rows.logit_rows.contains(&(row as u32));
            let logits = if wanted { logits.next().unwrap().to_vec() } else { Vec::new() };
            (logits, hidden)
        }));
    }
    out
}

pub(crate) const BLOCKS: usize = 64;

/// The CPU's decoder in f32 arithmetic, with the format of a device's cache where that has codes.
pub(crate) fn reference(path: &Path, cache: KvFormat) -> Decoder {
    let mut checkpoint = Checkpoint::open(path).unwrap();
    let pool = Arc::new(ThreadPool::new(1));
    let mut decoder = Decoder::load_with(&mut checkpoint, &pool, Precision::F32).unwrap();
    if cache == KvFormat::Int8 {
        decoder.set_cache_format(CacheFormat::Int8);
    }
    decoder
}

pub(crate) fn on_cuda(device: &Arc<Device>, path: &Path) -> CudaRunner {
    on_cuda_with(device, path, KvFormat::Float)
}

fn on_cuda_with(device: &Arc<Device>, path: &Path, cache: KvFormat) -> CudaRunner {
    let mut checkpoint = Checkpoint::open(path).unwrap();
    let decoder = CudaDecoder::load_with(&mut checkpoint, device, cache).unwrap();
    CudaRunner::new(decoder, BLOCKS, 300).unwrap()
}

/// How far two vectors are apart, as a part of the first one's length.
pub(crate) fn distance(expected: &[f32], got: &[f32]) -> f64 {
    assert_eq!(expected.len(), got.len());
    let square =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
    let apart = square(&mut expected.iter().zip(got).map(|(a, b)| a - b));
    (apart / square(&mut expected.iter().copied())).sqrt()
}

/// Every family and weight format: near the CPU's f32 arithmetic on the same weights, prompt chunks, single rows and
/// contexts of more than one split in one batch, and the same bits for a row whatever it is computed with.
pub(crate) fn the_decoder_agrees_with_the_cpu_and_with_itself() {
    let device = device();
    let window = SlidingWindow::from_layer(21, 0, 2);
    let wide = ModelConfig {
        hidden_size: 256,
        intermediate_size: 256,
        num_attention_heads: 3,
        ..config(Family::Llama)
    };
    let mixed = |name: &str| {
        let formats = [
            ("q_proj", DType::Q4_K),
            ("k_proj", DType::Q4_K),
            ("v_proj", DType::Q6_K),
            ("gate_proj", DType::Q5_K),
            ("up_proj", DType::Q8_0),
            ("down_proj", DType::Q4_1),
            ("embed", DType::Q6_K),
        ];
        let found = formats.iter().find(|(part, _)| name.contains(part));
        found.map_or(DType::Q4_0, |(_, dtype)| *dtype)
    };
    let models: [(&str, ModelConfig, Formats<'_>, f64); 4] = [
        ("llama in bf16", config(Family::Llama), &|_| DType::BF16, 0.02),
        ("qwen2 in f16", config(Family::Qwen2), &|_| DType::F16, 0.003),
        (
            "qwen3 in f32 with a window",
            ModelConfig { sliding_window: Some(window), ..config(Family::Qwen3) },
            &|_| DType::F32,
            0.03,
        ),
        ("llama in many formats", wide, &mixed, 0.02),
    ];
    for (name, config, format, tolerance) in models {
        agrees(&device, name, &config, 7, format, KvFormat::Float, tolerance);
    }
}

/// A random model: near the CPU's f32 arithmetic on the same weights, and the same bits for a row whatever it is computed
/// with.
pub(crate) fn agrees(
    device: &Arc<Device>,
    name: &str,
    config: &ModelConfig,
    seed: u64,
    format: Formats<'_>,
    cache: KvFormat,
    tolerance: f64,
) {
    let temporary = tempfile::tempdir().unwrap();
    // Prompt chunks, then rows of all three, the last context past one split of attention.
    let passes: [Pass<'_>; 4] = [
        &[(0, 0, 9), (1, 0, 1)],
        &[(2, 0, 262)],
        &[(0, 9, 1), (1, 1, 5), (2, 262, 3)],
        &[(2, 265, 1), (0, 10, 7)],
    ];
    let path = temporary.path().join("model.gguf");
    write_model(&path, config, seed, format, &|_| 1.0);
    let mut runner = on_cuda_with(device, &path, cache);
    let mut on_cpu = Runner::new(reference(&path, cache), BLOCKS);
    let expected = outputs(&mut on_cpu, &passes, |count| count);
    let got = outputs(&mut runner, &passes, |count| count);
    assert_eq!(expected.len(), got.len());
    let mut worst = [0.0f64; 2];
    for (row, (expected, got)) in expected.iter().zip(&got).enumerate() {
        let errors = [distance(&expected.0, &got.0), distance(&expected.1, &got.1)];
        // Not `error > tolerance`: a NaN must fail.
        assert!(errors.iter().all(|error| *error <= tolerance), "{name}, row {row}: {errors:?}");
        worst = [worst[0].max(errors[0]), worst[1].max(errors[1])];
    }
    println!("{name}: logits and hidden states within {worst:.4?} of the CPU's");
    // The same rows in other company, in other chunks, behind rejected rows that are overwritten.
    let other: [Pass<'_>; 5] = [
        &[(2, 0, 40), (0, 0, 9)],
        &[(2, 40, 222), (1, 0, 6), (0, 9, 3)],
        &[(2, 262, 1)],
        &[(2, 263, 3), (0, 9, 4)],
        &[(0, 13, 4)],
    ];
    let again = outputs(&mut on_cuda_with(device, &path, cache), &other, |count| count);
    // Row of `again` → row of `got`, by sequence and position.
    let places = |passes: &[Pass<'_>]| -> Vec<(usize, usize)> {
        let rows = passes.iter().flat_map(|pass| pass.iter());
        rows.flat_map(|&(sequence, start, count)| {
            (start..start + count).map(move |p| (sequence, p))
        })
        .collect()
    };
    let known = places(&passes);
    for (place, row) in places(&other).iter().zip(&again) {
        let expected = &got[known.iter().position(|other| other == place).unwrap()];
        assert!(row == expected, "{name}: bits of sequence {}, position {}", place.0, place.1);
    }
    // Hidden states do not depend on whose logits are wanted: of some rows, of none.
    let short = &passes[..1];
    for num_logits in [|count| count / 2, |_| 0] {
        let some = outputs(&mut runner, short, num_logits);
        for (row, (expected, got)) in got.iter().zip(&some).enumerate() {
            assert!(got.1 == expected.1, "{name}: bits of row {row}'s hidden state");
            assert!(got.0.is_empty() || got.0 == expected.0, "{name}: bits of row {row}");
        }
    }
}

/// Passes that repeat are recorded and replayed: the same bits as launch by launch, for new positions, in company, and
/// where the context grows into another split of attention.
pub(crate) fn recorded_passes_are_the_same() {
    let device = device();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    write_model(&path, &config(Family::Qwen2), 3, &|_| DType::BF16, &|_| 1.0);
    let mut passes: Vec<Vec<(usize, usize, usize)>> = vec![vec![(0, 0, 9), (1, 0, 250)]];
    passes.extend((0..5).map(|i| vec![(0, 9 + 2 * i, 2), (1, 250 + i, 1)]));
    passes.extend((0..5).map(|i| vec![(1, 255 + i, 1)]));
    let passes: Vec<Pass<'_>> = passes.iter().map(|pass| &pass[..]).collect();
    let mut plain = on_cuda(&device, &path).without_graphs();
    let expected = outputs(&mut plain, &passes, |count| count);
    assert_eq!(plain.replayed_passes(), 0);
    let mut runner = on_cuda(&device, &path);
    for round in 0..2 {
        let got = outputs(&mut runner, &passes, |count| count);
        assert!(got == expected, "bits, round {round}");
    }
    // The first pass of a kind is launched, and once more where a buffer grew.
    let replayed = runner.replayed_passes();
    assert!((12..22).contains(&replayed), "{replayed} of 22 passes");
}

/// A pass of five to eight rows is one recorded pass, whatever the rows are: those that fill it up change nothing.
pub(crate) fn passes_of_about_as_many_rows_are_one() {
    let device = device();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("model.gguf");
    write_model(&path, &config(Family::Llama), 7, &|_| DType::BF16, &|_| 1.0);
    let mut passes: Vec<Vec<(usize, usize, usize)>> = vec![vec![(0, 0, 9), (1, 0, 20), (2, 0, 1)]];
    let mut starts = [9, 20, 1];
    for counts in [[4, 1, 0], [1, 5, 2], [6, 1, 1], [2, 2, 1], [1, 1, 3], [3, 1, 3], [2, 5, 1]] {
        let mut pass = Vec::new();
        for (sequence, (start, count)) in starts.iter_mut().zip(counts).enumerate() {
            pass.extend((count > 0).then_some((sequence, *start, count)));
            *start += count;
        }
        passes.push(pass);
    }
    let passes: Vec<Pass<'_>> = passes.iter().map(|pass| &pass[..]).collect();
    // Of the passes of three sequences, the first is launched; where one row each has logits, the first of those that
    // are full, with three, and of those with a row more.
    let kinds: [(Wanted, u64); 2] = [(|count| count, 5), (|count| count.min(1), 4)];
    for (num_logits, expected_replays) in kinds {
        let expected = outputs(&mut on_cuda(&device, &path).without_graphs(), &passes, num_logits);
        let alone: Vec<_> = passes.iter().flat_map(|pass| pass.chunks(1)).collect();
        let mut runner = on_cuda(&device, &path);
        assert!(outputs(&mut runner, &passes, num_logits) == expected, "bits");
        assert_eq!(runner.replayed_passes(), expected_replays, "of 8 passes");
        let got = outputs(&mut on_cuda(&device, &path), &alone, num_logits);
        assert!(got == expected, "bits of sequences alone");
    }
}

pub(crate) fn what_cannot_be_done_is_said() {
    assert_eq!(Device::open(1).unwrap_err(), CudaError::NoDevice { index: 1, count: 1 });
    let error = foreign::call(Path::new("/nowhere.so"), &[]).unwrap_err();
    assert!(matches!(error, CudaError::Library { .. }), "{error}");
    let device = device();

    // Tensors that do not fit are refused before anything is launched.
    let tensor =
        |dtype, shape: [usize; 2]| Tensor::new(&device, dtype, shape[0], shape[1]).unwrap();
    let refused = |result: Result<(), CudaError>, expected: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, CudaError::Argument { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let weights = |dtype: DType| {
        Weights::pack(&device, dtype, 8, 64, &vec![0; dtype.bytes_for(512).unwrap()]).unwrap()
    };
    let x = tensor(DType::BF16, [3, 64]);
    let mut out = tensor(DType::F32, [3, 8]);
    device.matmul(&weights(DType::Q8_0), &x, &mut out, 0).unwrap();
    refused(
        device.matmul(&weights(DType::F16), &x, &mut out, 0),
        "F16 weights do not multiply BF16",
    );
    refused(device.matmul(&weights(DType::Q8_0), &x, &mut out, 1), "8 outputs from column 1");
    refused(
        device.matmul(&weights(DType::Q8_0), &x, &mut tensor(DType::F32, [2, 8]), 0),
        "out is F32 [2, 8]",
    );
    refused(
        device.matmul(&weights(DType::Q8_0), &tensor(DType::BF16, [3, 32]), &mut out, 0),
        "x is BF16 [3, 32]",
    );
    refused(device.matmul(&weights(DType::Q8_0), &x, &mut tensor(DType::F16, [3, 8]), 0), "sizes");
    refused(
        device.gate_mul(Activation::Silu, &x, &mut tensor(DType::BF16, [3, 31])),
        "gate_up is BF16 [3, 64], not BF16 [3, 62]",
    );
    let (mut residual, norm) = (tensor(DType::F32, [3, 64]), tensor(DType::F32, [1, 64]));
    let delta = Delta { values: &norm, norm: None };
    let mut normed = tensor(DType::BF16, [3, 64]);
    device.add_rms_norm(&mut residual, None, &norm, None, &mut normed, 1e-5).unwrap();
    refused(
        device.add_rms_norm(&mut residual, Some(delta), &norm, None, &mut normed, 1e-5),
        "delta is F32 [1, 64]",
    );
    let other = super::decoder::device();
    let foreign = Tensor::new(&other, DType::F32, 1, 64).unwrap();
    refused(
        device.add_rms_norm(&mut residual, None, &foreign, None, &mut normed, 1e-5),
        "weight is on another device",
    );
    let short = Weights::pack(&device, DType::Q8_0, 8, 64, &[0; 100]).err().unwrap();
    assert!(short.to_string().contains("8 x 64 does not take 100 bytes"), "{short}");
    let narrow = Weights::pack(&device, DType::BF16, 8, 48, &[0; 768]).err().unwrap();
    assert!(narrow.to_string().contains("no multiple of 32"), "{narrow}");

    let shape = config(Family::Llama).attention(0);
    let cells = KvLayer::new(&device, shape, DType::F16, KvFormat::Int8, [1, 16]).err().unwrap();
    assert!(cells.to_string().contains("no Int8 cells beside F16"), "{cells}");

    let golden = super::root().join("tests/goldens/llama-tied");
    let error = CudaDecoder::load(&mut Checkpoint::open(&golden).unwrap(), &device).err().unwrap();
    assert!(error.to_string().contains("head_dim: heads of"), "{error}");
}

/// What is sent is what was there when it was sent, although nobody waited for the copies.
pub(crate) fn what_is_sent_may_change_at_once() {
    let device = device();
    let mut staging = Staging::new(&device).unwrap();
    let mut host = HostBuffer::new(&device).unwrap();
    let mut random = fastrand::Rng::new();
    // The last ones are more than is sent without waiting.
    for count in [1, 7, 40_000, 100_000] {
        let mut values: Vec<f32> = (0..count).map(|_| random.f32()).collect();
        let mut tensors = [(); 3].map(|()| Tensor::new(&device, DType::F32, 1, count).unwrap());
        let mut sent = Vec::new();
        for tensor in &mut tensors {
            staging.send_values(&values, tensor).unwrap();
            sent.push(values.clone());
            values.iter_mut().for_each(|value| *value = 1.0 - *value);
        }
        for (tensor, sent) in tensors.iter().zip(&sent) {
            assert_eq!(host.read_rows(tensor, std::iter::once(0..1)).unwrap(), &sent[..]);
        }
    }
}
