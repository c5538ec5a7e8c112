//! How to train, and how long.

use pleach_kernels::best_threads;

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Optimiser steps.
    Steps(u32),
    /// Seconds spent in steps.
    Seconds(f64),
    /// Passes over the answers; part of one counts.
    Epochs(f64),
}

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// When to end.
    pub budget: Budget,
    /// Highest step size.
    pub learning_rate: f32,
    /// Share of the budget in which the step size rises from 0; it falls as a cosine afterwards.
    pub warmup: f64,
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f32,
    /// Norm that gradients are clipped to.
    pub max_norm: f32,
    /// Tokens that go through the network together.
    pub rows: usize,
    /// Such batches in one optimiser step.
    pub accumulation: usize,
    /// Threads; a run has the same bits on any number of them.
    pub threads: usize,
    /// Share of the answers kept for validation.
    pub validation: f64,
    /// Orders the examples.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            budget: Budget::Steps(1000),
            learning_rate: 2e-3,
            warmup: 0.03,
            weight_decay: 0.01,
            max_norm: 1.0,
            rows: 2048,
            accumulation: 2,
            threads: best_threads(),
            validation: 0.02,
            seed: 0,
        }
    }
}
