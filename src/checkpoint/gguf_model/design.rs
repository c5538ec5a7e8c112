//! What sets the blocks of a GGUF file's model apart from Llama's.

use super::extension::Extension;
use super::keys::Keys;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::architecture::{Design, Family, RopeConfig, RopeScaling, SlidingWindow};
use pleach_kernels::Activation;

/// Blocks of the models of 27 billion parameters. llama.cpp knows by their number that they divide attention scores
/// by the root of the width per head, not by that of the head's own width.
const BLOCKS_OF_27B: [(Family, usize); 2] = [(Family::Gemma2, 46), (Family::Gemma3, 62)];

/// The design of a model with `[hidden_size, heads, head_dim]`.
pub(super) fn of(
    keys: &Keys,
    family: Family,
    extension: Option<&Extension<'_>>,
    [hidden_size, heads, head_dim]: [usize; 3],
) -> Result<Design, CheckpointError> {
    let blocks = keys.usize("block_count")?;
    let number = |name| extension.map_or(Ok(None), |extension| extension.number(name));
    if !matches!(family, Family::Gemma2 | Family::Gemma3) {
        let said = extension.map_or(Ok(None), Extension::unrotated)?;
        // llama.cpp knows of SmolLM3 that the last of every four blocks does not rotate.
        let own = || (0..blocks.min(1 << 20)).map(|i| (i + 1).is_multiple_of(4)).collect();
        let unrotated =
            said.unwrap_or_else(|| if keys.arch == "smollm3" { own() } else { Vec::new() });
        let share = number("partial_rotary_factor")?;
        let rotated = match share {
            Some(share) => Some((head_dim as f64 * share).round() as usize),
            None => keys.optional_usize("rope.dimension_count")?.filter(|size| *size != head_dim),
        };
        return Ok(Design { unrotated, rotated, ..Design::default() });
    }
    let wide = BLOCKS_OF_27B.contains(&(family, blocks));
    let scalar = if wide { hidden_size.checked_div(heads).unwrap_or(0) } else { head_dim };
    let caps = if family == Family::Gemma2 { [Some(50.0), Some(30.0)] } else { [None; 2] };
    let cap = |name, usual| -> Result<Option<f32>, CheckpointError> {
        let given = keys.optional_f64(name)?.or(usual);
        Ok(given.filter(|cap| *cap != 0.0).map(|cap| cap as f32))
    };
    let local = match family {
        Family::Gemma3 => Some(RopeConfig {
            theta: keys.optional_f64("rope.freq_base_swa")?.unwrap_or(10_000.0),
            scaling: RopeScaling::None,
        }),
        _ => None,
    };
    let scale = number("embedding_multiplier")?;
    Ok(Design {
        activation: Activation::GeluTanh,
        output_norms: true,
        norms_from_one: true,
        embedding_scale: Some(scale.unwrap_or((hidden_size as f64).sqrt()) as f32),
        query_scalar: Some(number("query_pre_attn_scalar")?.unwrap_or(scalar as f64)),
        score_cap: cap("attn_logit_softcapping", caps[0])?,
        logit_cap: cap("final_logit_softcapping", caps[1])?,
        local_rope: local,
        ..Design::default()
    })
}

/// Which of `blocks` blocks attend through a window: those of `layers` where the file says it, else what llama.cpp
/// knows of the architecture.
pub(super) fn sliding_window(
    keys: &Keys,
    family: Family,
    layers: Option<Vec<bool>>,
    blocks: usize,
) -> Result<Option<SlidingWindow>, CheckpointError> {
    let window = keys.optional_usize("attention.sliding_window")?;
    let window = window.or((family == Family::Gemma2).then_some(4096));
    let Some(window) = window.filter(|window| *window > 0) else { return Ok(None) };
    let at_most = blocks.min(1 << 20);
    let period = match family {
        Family::Gemma2 => 2,
        Family::Gemma3 => 6,
        _ => 0,
    };
    let own = match layers {
        Some(layers) => SlidingWindow { window, layers },
        None => match pattern(keys)? {
            Some(Pattern::Layers(layers)) => SlidingWindow { window, layers },
            Some(Pattern::Period(period)) => SlidingWindow::but_every(period, window, at_most),
            None if period > 0 => SlidingWindow::but_every(period, window, at_most),
            None => SlidingWindow::from_layer(window, 0, at_most),
        },
    };
    Ok(Some(own).filter(|own| own.layers.contains(&true)))
}

/// What `attention.sliding_window_pattern` says: which blocks have a window, or of how many one has none.
enum Pattern {
    Layers(Vec<bool>),
    Period(usize),
}

fn pattern(keys: &Keys) -> Result<Option<Pattern>, CheckpointError> {
    const NAME: &str = "attention.sliding_window_pattern";
    let Some(value) = keys.gguf.get(&keys.key(NAME)) else { return Ok(None) };
    if let Some(flags) = value.as_array() {
        let flags = flags.iter().map(|flag| flag.as_u64().map(|flag| flag != 0)).collect();
        let flags: Option<Vec<bool>> = flags;
        return flags
            .map(|flags| Some(Pattern::Layers(flags)))
            .ok_or_else(|| keys.error(NAME, "is no list of flags"));
    }
    match keys.optional_usize(NAME)? {
        None => Ok(None),
        Some(0) => Err(keys.error(NAME, "is 0")),
        Some(period) => Ok(Some(Pattern::Period(period))),
    }
}
