//! Reads texts with a decoder for the states behind its blocks, which pruning measures and training reads.

use super::{CudaDecoder, CudaRunner, Decoder, KvCache, ModelConfig, PassBounds, Rows, Workspace};
use crate::kv_cache::{BLOCK_SIZE, BlockPool, BlockTable, blocks_for};
use pleach_kernels::cuda::CudaError;

/// A decoder that reads one text after the other.
pub struct TextReader {
    decoder: Reading,
    table: BlockTable,
    /// Tokens of the last text.
    len: usize,
}

enum Reading {
    Cpu { decoder: Box<Decoder>, cache: KvCache, workspace: Box<Workspace> },
    Cuda(Box<CudaRunner>),
}

impl TextReader {
    /// A reader of texts of at most `longest` tokens.
    #[must_use]
    pub fn on_cpu(decoder: Decoder, longest: usize) -> Self {
        let cache = decoder.new_kv_cache(blocks_for(longest));
        let (decoder, workspace) = (Box::new(decoder), Box::default());
        Self::of(Reading::Cpu { decoder, cache, workspace }, longest)
    }

    /// The same on the decoder's device, whose memory for the longest is taken here.
    ///
    /// # Errors
    /// If the device has too little memory, or fails.
    pub fn on_cuda(decoder: CudaDecoder, longest: usize) -> Result<Self, CudaError> {
        let mut runner = CudaRunner::new(decoder, blocks_for(longest), longest)?;
        runner.reserve(PassBounds {
            rows: longest,
            sequences: 1,
            logit_rows: 1,
            decides: false,
            drafted: false,
            adapted: false,
        })?;
        Ok(Self::of(Reading::Cuda(Box::new(runner)), longest))
    }

    fn of(decoder: Reading, longest: usize) -> Self {
        let (mut pool, mut table) = (BlockPool::new(blocks_for(longest)), BlockTable::new());
        assert!(table.reserve(longest, &mut pool), "invariant: sized for the longest text");
        Self { decoder, table, len: 0 }
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        match &self.decoder {
            Reading::Cpu { decoder, .. } => decoder.config(),
            Reading::Cuda(runner) => runner.decoder().config(),
        }
    }

    /// The hidden states of a text, `[blocks + 1]` of `[tokens, hidden]`: before block 0, and after each.
    ///
    /// # Errors
    /// If a device has too little memory, or fails.
    ///
    /// # Panics
    /// If the text is longer than the longest, or a token is none of the model's.
    pub fn read(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, CudaError> {
        let mut rows = Rows::default();
        rows.push(&self.table, 0, tokens.iter().copied(), 0);
        self.len = tokens.len();
        let mut states = Vec::new();
        let mut keep = |_, hidden: &[f32]| states.push(hidden.to_vec());
        match &mut self.decoder {
            Reading::Cpu { decoder, cache, workspace } => {
                decoder.forward_observed(&rows, cache, workspace, &mut keep);
            }
            Reading::Cuda(runner) => runner.forward_observed(&rows, &mut keep)?,
        }
        Ok(states)
    }

    /// Keys, rotated, and values that a block has for the last text, `[tokens, kv_heads, head_dim]` each.
    ///
    /// # Errors
    /// If a device fails.
    pub fn cells(&self, block: usize) -> Result<[Vec<f32>; 2], CudaError> {
        let (kv_heads, dim) = (self.config().num_key_value_heads, self.config().head_dim);
        let width = kv_heads * dim;
        let mut cells = [(); 2].map(|()| vec![0.0; self.len * width]);
        let [keys, values] = &mut cells;
        match &self.decoder {
            Reading::Cpu { cache, .. } => {
                let places = keys.chunks_exact_mut(width).zip(values.chunks_exact_mut(width));
                for (position, (keys, values)) in places.enumerate() {
                    cache.read(block, self.table.slot(position), keys, values);
                }
            }
            Reading::Cuda(runner) => {
                let blocks = &self.table.blocks()[..blocks_for(self.len)];
                let read = runner.cells(block, blocks)?;
                for (cells, read) in cells.iter_mut().zip(read) {
                    for (at, cell) in cells.chunks_exact_mut(dim).enumerate() {
                        let (position, head) = (at / kv_heads, at % kv_heads);
                        let place = (position / BLOCK_SIZE * kv_heads + head) * BLOCK_SIZE;
                        let from = (place + position % BLOCK_SIZE) * dim;
                        cell.copy_from_slice(&read[from..from + dim]);
                    }
                }
            }
        }
        Ok(cells)
    }
}
