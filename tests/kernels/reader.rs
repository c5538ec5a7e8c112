//! States, keys and values of texts that are read on the emulator, against the CPU's.

use pleach::checkpoint::Checkpoint;
use pleach::model::{CudaDecoder, Family, ModelConfig, TextReader};
use pleach_kernels::DType;
use pleach_kernels::cuda::KvFormat;

use super::decoder::{config, device, distance, reference};
use super::support::random_model::write_model;

/// Texts of random lengths, within a block of the cache and past several.
pub(crate) fn texts_are_read_as_on_the_cpu() {
    let device = device();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let longest = 120;
    for (family, dtype, format, tolerance) in [
        (Family::Llama, DType::BF16, KvFormat::Float, 0.02),
        (Family::Qwen3, DType::F16, KvFormat::Float, 0.005),
        (Family::Qwen3, DType::BF16, KvFormat::Int8, 0.05),
    ] {
        let config = ModelConfig { num_hidden_layers: 3, ..config(family) };
        let seed = fastrand::u64(..);
        write_model(&path, &config, seed, &|_| dtype, &|_| 1.0);
        let mut checkpoint = Checkpoint::open(&path).unwrap();
        let mut on_cpu = TextReader::on_cpu(reference(&path, format), longest);
        let on_cuda = CudaDecoder::load_with(&mut checkpoint, &device, format).unwrap();
        let mut on_cuda = TextReader::on_cuda(on_cuda, longest).unwrap();
        let near = |what: &str, expected: &[f32], got: &[f32]| {
            let apart = distance(expected, got);
            // Not `apart > tolerance`: a NaN must fail.
            assert!(apart <= tolerance, "{family:?}, seed {seed}: {what} is {apart} away");
        };
        let mut random = fastrand::Rng::with_seed(seed);
        for len in [longest, 1, random.usize(2..longest), random.usize(2..longest)] {
            let tokens: Vec<u32> =
                (0..len).map(|_| random.u32(..config.vocab_size as u32)).collect();
            let (expected, got) = (on_cpu.read(&tokens).unwrap(), on_cuda.read(&tokens).unwrap());
            assert_eq!((expected.len(), got.len()), (4, 4));
            for (state, (expected, got)) in expected.iter().zip(&got).enumerate() {
                near(&format!("state {state} of {len} tokens"), expected, got);
            }
            for block in 0..3 {
                let [keys, values] = on_cpu.cells(block).unwrap();
                let [got_keys, got_values] = on_cuda.cells(block).unwrap();
                near(&format!("keys of block {block}, {len} tokens"), &keys, &got_keys);
                near(&format!("values of block {block}, {len} tokens"), &values, &got_values);
            }
        }
    }
}
