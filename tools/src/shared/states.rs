//! A model's hidden states of texts.

use anyhow::{Context, Result};
use pleach::checkpoint::Checkpoint;
use pleach::kv_cache::{BlockPool, BlockTable, blocks_for};
use pleach::loading::load_cuda_target;
use pleach::model::{CudaRunner, Decoder, KvCache, Rows, Workspace};

use super::model_args::ModelArgs;
use super::place::Place;

/// Reads one text after the other, where a place says.
pub(crate) enum StateReader {
    Cpu(Box<CpuReader>),
    Cuda(Box<CudaReader>),
}

/// Reads them on the processor.
pub(crate) struct CpuReader {
    decoder: Decoder,
    pub(crate) cache: KvCache,
    pub(crate) table: BlockTable,
    workspace: Workspace,
}

/// Reads them on a device.
pub(crate) struct CudaReader {
    runner: CudaRunner,
    table: BlockTable,
}

/// A cache's blocks for texts of up to `longest` tokens, all in one table.
fn table(longest: usize) -> (usize, BlockTable) {
    let blocks = blocks_for(longest);
    let (mut pool, mut table) = (BlockPool::new(blocks), BlockTable::default());
    assert!(table.reserve(longest, &mut pool), "invariant: sized for the longest text");
    (blocks, table)
}

impl CpuReader {
    pub(crate) fn new(decoder: Decoder, longest: usize) -> Self {
        let (blocks, table) = table(longest);
        Self { cache: decoder.new_kv_cache(blocks), decoder, table, workspace: Workspace::new() }
    }

    /// All states of a text: `[blocks + 1]` of `[tokens, hidden]`.
    pub(crate) fn read(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let Self { decoder, cache, workspace, table } = self;
        let mut states = Vec::new();
        decoder.forward_observed(&rows(table, tokens), cache, workspace, &mut |_, hidden| {
            states.push(hidden.to_vec());
        });
        states
    }
}

impl StateReader {
    /// Loads a model for texts of up to `longest` tokens; onto the processor what a device does not run, where the choice is
    /// left.
    pub(crate) fn load(
        args: &ModelArgs,
        checkpoint: &mut Checkpoint,
        mut place: Place,
        longest: usize,
    ) -> Result<Self> {
        let (blocks, table) = table(longest);
        let on_device = place.device.as_ref().map(|device| -> Result<CudaRunner> {
            Ok(CudaRunner::new(load_cuda_target(checkpoint, device)?, blocks, longest)?)
        });
        match on_device.transpose() {
            Ok(Some(runner)) => return Ok(Self::Cuda(CudaReader { runner, table }.into())),
            Ok(None) => {}
            Err(error) => place.leave(error)?,
        }
        let decoder = Decoder::load(checkpoint, &args.pool())?;
        Ok(Self::Cpu(CpuReader::new(decoder, longest).into()))
    }

    /// What the device is called that reads; `None` for the processor.
    pub(crate) fn device(&self) -> Option<&str> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(reader) => Some(reader.runner.decoder().device().name()),
        }
    }

    /// All states of a text: `[blocks + 1]` of `[tokens, hidden]`.
    pub(crate) fn read(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(reader) => Ok(reader.read(tokens)),
            Self::Cuda(reader) => {
                let CudaReader { runner, table } = &mut **reader;
                let mut states = Vec::new();
                let keep = &mut |_: usize, hidden: &[f32]| states.push(hidden.to_vec());
                let read = runner.forward_observed(&rows(table, tokens), keep);
                read.context("`--device cpu` computes on the processor")?;
                Ok(states)
            }
        }
    }
}

/// A pass over a text, without logits.
fn rows(table: &BlockTable, tokens: &[u32]) -> Rows {
    let mut rows = Rows::default();
    rows.push(table, 0, tokens.iter().copied(), 0);
    rows
}
