//! Our kernels against the same operations as candle composes them in f32, values and gradients, on random inputs.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use fastrand::Rng;

use super::super::adapted::Adapted;
use super::super::attention::{Attention, HeadShape};
use super::super::backend::Backend;
use super::super::chain_attention::{ChainAttention, Chains};
use super::super::distill_loss::{Head, Targets};
use super::super::frozen::Frozen;
use super::{adapted, attention, chain_attention, distill_loss, gate_mul, linear, rms_norm};
use pleach::model::{
    Design, Family, ModelConfig, RopeConfig, RopeScaling, RopeTables, SlidingWindow,
};
use pleach_kernels::Activation;
use pleach_kernels::training::{Divergence, Mixture};

fn values(random: &mut Rng, count: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|_| (random.f32() - 0.5) * 2.0 * scale).collect()
}

fn tensor(random: &mut Rng, rows: usize, columns: usize) -> Tensor {
    Tensor::from_vec(values(random, rows * columns, 1.0), (rows, columns), &Device::Cpu).unwrap()
}

/// Relative distance of two tensors; NaN where one has it.
fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let square = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    (square(&(a - b).unwrap()) / square(b).max(1e-12)).sqrt()
}

/// Holds an operation of both backends against each other: its values, and the gradients of its inputs for random
/// gradients of the values.
fn agree(what: &str, inputs: &[Tensor], op: impl Fn(&[Tensor], &Backend) -> Result<Tensor>) {
    let mut random = Rng::new();
    let [own, composed] = [Backend::processor(), Backend::composed(Device::Cpu)].map(|backend| {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|input| Var::from_tensor(input).unwrap().as_tensor().clone())
            .collect();
        let y = op(&inputs, &backend).unwrap();
        (inputs, y)
    });
    // bf16 products where the machine has them.
    let close = |got: &Tensor, wanted: &Tensor, part: &str| {
        let distance = distance(got, wanted);
        assert!(distance < 0.015, "{what}: {part}: {distance}");
    };
    close(&own.1, &composed.1, "value");
    let dy = values(&mut random, own.1.elem_count(), 1.0);
    let dy = Tensor::from_vec(dy, own.1.shape(), &Device::Cpu).unwrap();
    let [own, composed] = [own, composed].map(|(inputs, y)| {
        let store = (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        inputs.iter().map(|input| store.get(input).unwrap().clone()).collect::<Vec<_>>()
    });
    for (index, (own, composed)) in own.iter().zip(&composed).enumerate() {
        close(own, composed, &format!("gradient {index}"));
    }
}

#[test]
fn products_norms_and_gates() {
    let random = &mut Rng::new();
    let (rows, inner, out) = (random.usize(1..300), random.usize(1..90), random.usize(1..90));
    let (x, w) = (tensor(random, rows, inner), tensor(random, out, inner));
    agree("linear", &[x.clone(), w], |inputs, backend| linear(backend, &inputs[0], &inputs[1]));
    let weight = Tensor::from_vec(values(random, inner, 2.0), inner, &Device::Cpu).unwrap();
    agree("norm", &[x, weight], |inputs, backend| rms_norm(backend, &inputs[0], &inputs[1], 1e-3));
    let x = tensor(random, rows, 2 * inner);
    let x = (x * 4.0).unwrap();
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gate = |inputs: &[Tensor], backend: &Backend| gate_mul(backend, &inputs[0], activation);
        agree(&format!("{activation:?}"), std::slice::from_ref(&x), gate);
    }
}

#[test]
fn adapted_matrices() {
    let random = &mut Rng::new();
    let (rows, inner, rank) = (random.usize(1..200), random.usize(1..70), random.usize(1..9));
    let parts = [random.usize(1..50), random.usize(1..50)];
    let out = parts.iter().sum();
    let w = values(random, out * inner, 1.0);
    let inputs = [(rows, inner), (2 * rank, inner), (out, rank)]
        .map(|(rows, columns)| tensor(random, rows, columns));
    agree("adapted", &inputs, |inputs, backend| {
        let frozen = Arc::new(Frozen::new(&w, inner, backend)?);
        let matrices = Adapted { frozen, parts: parts.into(), rank, scale: 1.7 };
        adapted(backend, &matrices, &inputs[0], [&inputs[1], &inputs[2]])
    });
}

/// Models of two blocks, of which the second has a window: grouped heads, caps, parts of heads that turn.
fn models() -> [ModelConfig; 2] {
    let base = ModelConfig {
        family: Family::Llama,
        vocab_size: 100,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 3,
        head_dim: 16,
        max_position_embeddings: 512,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
        sliding_window: Some(SlidingWindow::from_layer(5, 1, 2)),
        design: Design { rotated: Some(8), ..Design::default() },
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_ids: vec![1],
    };
    let mut capped = base.clone();
    capped.design.score_cap = Some(1.5);
    capped.design.query_scalar = Some(3.0);
    capped.design.local_rope = Some(RopeConfig { theta: 100.0, scaling: RopeScaling::None });
    [base, capped]
}

#[test]
fn attention_of_sequences() {
    let random = &mut Rng::new();
    for config in models() {
        let lengths = [random.usize(1..40), random.usize(1..9), random.usize(1..150)];
        let mut sequences = Vec::new();
        let mut positions: Vec<u32> = Vec::new();
        for length in lengths {
            sequences.push(positions.len()..positions.len() + length);
            positions.extend(0..length as u32);
        }
        let mut ropes = RopeTables::new(&config);
        ropes.set_positions(&positions);
        let ropes = Arc::new(ropes);
        for block in 0..2 {
            let shape = HeadShape::of(&config, block);
            let qkv = tensor(random, positions.len(), shape.stride());
            agree(&format!("attention, block {block}"), &[qkv], |inputs, backend| {
                let (sequences, ropes) = (sequences.clone().into(), Arc::clone(&ropes));
                let op = Attention { shape, sequences, ropes, block };
                attention(backend, op, &inputs[0])
            });
        }
    }
}

#[test]
fn attention_of_chains() {
    let random = &mut Rng::new();
    for config in models() {
        for (block, steps) in [(0, 1), (0, 3), (1, 2), (1, 4)] {
            let shape = HeadShape::of(&config, block);
            let cells = shape.kv_heads * shape.head_dim;
            let mut chains: Vec<Chains> = Vec::new();
            let mut positions = Vec::new();
            for _ in 0..2 {
                let (start, count) = (positions.len(), random.usize(1..30));
                let first = random.usize(0..20);
                let mut cells = || Arc::new(values(random, (first + count) * cells, 1.0));
                chains.push(Chains {
                    rows: start..start + count,
                    first,
                    keys: cells(),
                    values: cells(),
                });
                positions.extend((first + 1..=first + count).map(|at| at as u32));
            }
            let of_steps = (0..steps).flat_map(|step| positions.iter().map(move |at| at + step));
            let mut ropes = RopeTables::new(&config);
            ropes.set_positions(&of_steps.collect::<Vec<u32>>());
            let (ropes, chains) = (Arc::new(ropes), Arc::<[Chains]>::from(chains));
            let steps = steps as usize;
            let qkv = tensor(random, steps * positions.len(), shape.stride());
            agree(&format!("chains, block {block}, {steps} steps"), &[qkv], |inputs, backend| {
                let (chains, ropes) = (Arc::clone(&chains), Arc::clone(&ropes));
                let op = ChainAttention { shape, steps, chains, ropes, block };
                chain_attention(backend, op, &inputs[0])
            });
        }
    }
}

#[test]
fn losses() {
    let random = &mut Rng::new();
    let (rows, width, columns) = (random.usize(10..150), 24, random.usize(20..300));
    let hidden = tensor(random, rows, width);
    let head = values(random, columns * width, 0.5);
    let mut targets = Targets::default();
    for row in 0..rows as u32 {
        if random.usize(0..4) == 0 {
            continue;
        }
        let mut columns: Vec<u32> = (0..columns as u32).collect();
        random.shuffle(&mut columns);
        columns.truncate(random.usize(0..8));
        let shares: Vec<f32> = columns.iter().map(|_| random.f32() + 0.01).collect();
        let sum = shares.iter().sum::<f32>() * (1.0 + random.f32());
        targets.rows.push(row);
        targets.entries.extend(columns.iter().zip(shares).map(|(at, share)| (*at, share / sum)));
        targets.ends.push(targets.entries.len());
    }
    let mixture = |forward_kl, reverse_kl, total_variation| {
        Divergence::Mixture(Mixture { forward_kl, reverse_kl, total_variation })
    };
    let all = mixture(0.5, 0.7, 2.0);
    for (divergence, cap) in [
        (Divergence::FORWARD_KL, None),
        (mixture(0.0, 1.0, 0.0), None),
        (mixture(0.0, 0.0, 1.0), None),
        (all, None),
        (all, Some(2.0)),
        (Divergence::Adaptive, None),
    ] {
        let tallies = std::cell::RefCell::new(Vec::new());
        agree(
            &format!("loss, {divergence:?}, {cap:?}"),
            std::slice::from_ref(&hidden),
            |inputs, backend| {
                let rows = Arc::new(Frozen::new(&head, width, backend)?);
                let head = Head { rows: &rows, cap };
                let targets = targets.clone();
                let (loss, tally) =
                    distill_loss(backend, &inputs[0], head, targets, divergence, true)?;
                assert!((f64::from(loss.to_scalar::<f32>()?) / tally.loss - 1.0).abs() < 1e-4);
                tallies.borrow_mut().push(tally);
                Ok(loss)
            },
        );
        let [own, composed] = tallies.borrow()[..] else { panic!("two backends") };
        assert_eq!(own.rows, composed.rows);
        // A product in bf16 may see two columns change places.
        assert!(own.agree.abs_diff(composed.agree) <= 2, "{} {}", own.agree, composed.agree);
    }
}
