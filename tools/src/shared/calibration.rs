//! The text that a model reads for what pruning starts from.

use anyhow::{Result, ensure};
use pleach::checkpoint::Checkpoint;

use crate::shared::chat::Chat;
use crate::shared::model_args::ModelArgs;
use crate::shared::place::Place;
use crate::shared::progress::Progress;
use crate::shared::states::text_reader;
use crate::shared::texts::CALIBRATION;

/// Tokens of text in one pass, and such passes.
const PIECE: usize = 512;
const PIECES: usize = 24;

/// Shows `observe` the states of the model, `[blocks + 1]` of `[tokens, hidden]`, for one piece of text after the other.
pub(crate) fn read(
    model: &ModelArgs,
    checkpoint: &mut Checkpoint,
    mut place: Place,
    mut observe: impl FnMut(&[Vec<f32>]) -> Result<()>,
) -> Result<()> {
    let tokens = Chat::new(checkpoint)?.encode_text(CALIBRATION, false)?;
    let mut reader = text_reader(model, checkpoint, &mut place, PIECE)?;
    let pieces: Vec<&[u32]> = tokens.chunks_exact(PIECE).take(PIECES).collect();
    ensure!(!pieces.is_empty(), "the text has {} tokens; {PIECE} are needed", tokens.len());
    let mut progress = Progress::new("reading text", pieces.len() as u64);
    for (done, piece) in pieces.iter().enumerate() {
        observe(&reader.read(piece)?)?;
        progress.set(done as u64 + 1, String::new());
    }
    progress.finish();
    Ok(())
}
