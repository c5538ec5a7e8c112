//! Logits of a text, and how far some are from others.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "support of tests")]

use std::sync::Arc;

use pleach::kv_cache::{BlockPool, BlockTable, blocks_for};
use pleach::model::{AdapterWeights, Decoder, Rows, Workspace};

/// Logits of all positions, through an adapter where one is named, in chunks of so many rows.
pub fn logits(
    decoder: &Decoder,
    tokens: &[u32],
    adapter: Option<&Arc<AdapterWeights>>,
    chunk: usize,
) -> Vec<f32> {
    let blocks = blocks_for(tokens.len());
    let (mut pool, mut table) = (BlockPool::new(blocks), BlockTable::default());
    assert!(table.reserve(tokens.len(), &mut pool));
    let (mut cache, mut workspace) = (decoder.new_kv_cache(blocks), Workspace::new());
    let mut all = Vec::new();
    for (index, tokens) in tokens.chunks(chunk).enumerate() {
        let mut rows = Rows::default();
        rows.push(&table, index * chunk, tokens.iter().copied(), tokens.len());
        adapter.into_iter().for_each(|adapter| rows.adapt_last(adapter));
        all.extend_from_slice(decoder.forward(&rows, &mut cache, &mut workspace));
    }
    all
}

/// Distance over size; NaN where anything is NaN.
pub fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |v: f64| v * v;
    let distance: f64 =
        got.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (distance / expected.iter().map(|v| square(f64::from(*v))).sum::<f64>()).sqrt()
}
