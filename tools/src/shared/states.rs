//! A model that reads texts for its states, where a place says.

use anyhow::Result;
use pleach::checkpoint::Checkpoint;
use pleach::cli::KvCacheDtype;
use pleach::loading::load_cuda_target;
use pleach::model::{Decoder, TextReader};

use super::model_args::ModelArgs;
use super::place::Place;

/// Loads a model for texts of up to `longest` tokens; onto the processor what a device does not run, where the choice is
/// left.
pub(crate) fn text_reader(
    args: &ModelArgs,
    checkpoint: &mut Checkpoint,
    place: &mut Place,
    longest: usize,
) -> Result<TextReader> {
    place.load(|device| match device {
        Some(device) => {
            let target = load_cuda_target(checkpoint, device, KvCacheDtype::Auto)?;
            Ok(TextReader::on_cuda(target, longest)?)
        }
        None => Ok(TextReader::on_cpu(Decoder::load(checkpoint, &args.pool())?, longest)),
    })
}
