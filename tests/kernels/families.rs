//! Small models of the families whose blocks are not Llama's, and heads of every width.

use pleach::model::{Design, Family, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
use pleach_kernels::cuda::KvFormat;
use pleach_kernels::{Activation, DType};

use super::decoder::{agrees, config, device};
use super::drawn;

fn plain_rope(theta: f64) -> RopeConfig {
    RopeConfig { theta, scaling: RopeScaling::None }
}

/// Two numbers for each value that turns, one of which is 1 at first.
fn long_rope(turned: usize) -> RopeConfig {
    let divisors = |by: f32| (0..turned / 2).map(|i| 1.0 + by * i as f32).collect();
    let scaling = RopeScaling::LongRope {
        short: divisors(0.01),
        long: divisors(0.05),
        original_max_position_embeddings: 256,
        attention_factor: 1.19,
    };
    RopeConfig { theta: 10_000.0, scaling }
}

/// Heads of 256 values, two kinds of rotary embedding, norms of outputs.
pub(crate) fn gemma3(blocks: usize) -> ModelConfig {
    ModelConfig {
        num_hidden_layers: blocks,
        head_dim: 256,
        rope: RopeConfig { theta: 1e5, scaling: RopeScaling::Linear { factor: 8.0 } },
        sliding_window: Some(SlidingWindow::but_every(2, 21, blocks)),
        design: Design {
            activation: Activation::GeluTanh,
            output_norms: true,
            norms_from_one: true,
            embedding_scale: Some(11.3125),
            query_scalar: Some(3000.0),
            local_rope: Some(plain_rope(1000.0)),
            ..Design::default()
        },
        ..config(Family::Gemma3)
    }
}

/// Bounds of scores and logits.
pub(crate) fn gemma2(blocks: usize) -> ModelConfig {
    let gemma = gemma3(blocks);
    ModelConfig {
        family: Family::Gemma2,
        rope: plain_rope(10_000.0),
        sliding_window: Some(SlidingWindow::but_every(2, 37, blocks)),
        design: Design {
            score_cap: Some(1.0),
            logit_cap: Some(2.0),
            local_rope: None,
            ..gemma.design
        },
        ..gemma
    }
}

fn families() -> Vec<(&'static str, ModelConfig, DType, f64)> {
    let llama = || config(Family::Llama);
    let phi3 = ModelConfig {
        head_dim: 96,
        rope: long_rope(96),
        sliding_window: Some(SlidingWindow::from_layer(261, 0, 2)),
        ..llama()
    };
    let phi4 = ModelConfig {
        head_dim: 128,
        rope: long_rope(96),
        design: Design { rotated: Some(96), ..Design::default() },
        ..llama()
    };
    let smollm3 = ModelConfig {
        num_hidden_layers: 3,
        design: Design { unrotated: vec![false, true, false], ..Design::default() },
        ..llama()
    };
    let danube = ModelConfig {
        head_dim: 80,
        sliding_window: Some(SlidingWindow::from_layer(50, 0, 2)),
        ..llama()
    };
    let narrow = ModelConfig { head_dim: 128, ..gemma2(2) };
    vec![
        ("gemma 3", gemma3(2), DType::BF16, 0.04),
        ("gemma 3 in f16, computed in bf16", gemma3(2), DType::F16, 0.05),
        ("gemma 2", gemma2(2), DType::BF16, 0.03),
        ("gemma 2 with heads of 128", narrow, DType::F32, 0.04),
        ("phi-3 mini", phi3, DType::F16, 0.006),
        ("phi-4 mini", phi4, DType::F16, 0.006),
        ("smollm3", smollm3, DType::F16, 0.006),
        ("danube in 5 bits", danube.clone(), DType::Q5_0, 0.04),
        ("danube", danube, DType::F16, 0.006),
    ]
}

/// As the CPU has it, in fresh weights each time.
pub(crate) fn every_family_agrees_with_the_cpu() {
    let device = device();
    for (name, config, dtype, tolerance) in drawn(families(), 5) {
        let seed = fastrand::u64(..);
        let name = format!("{name}, seed {seed}");
        agrees(&device, &name, &config, seed, &|_| dtype, KvFormat::Float, tolerance);
    }
}

/// The same with keys and values of 8 bits: heads of 256, 96 and 80 values, bounds of scores, windows, and a file in f16. A
/// value that falls to the neighbouring code is a 127th of the largest away.
pub(crate) fn caches_of_codes_agree_with_the_cpu() {
    let device = device();
    let wanted = ["gemma 2", "phi-3 mini", "danube in 5 bits"];
    let tolerance = 0.12;
    let models = families().into_iter().filter(|it| wanted.contains(&it.0)).collect();
    for (name, config, dtype, _) in drawn(models, 2) {
        let seed = fastrand::u64(..);
        let name = format!("{name} in codes, seed {seed}");
        agrees(&device, &name, &config, seed, &|_| dtype, KvFormat::Int8, tolerance);
    }
}
