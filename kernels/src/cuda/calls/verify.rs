//! Verification: `verify.cu`.

use super::{Address, MAX_GRID_X, Plan, div_up, fit, kernel, line};

const VERIFY_THREADS: i64 = 512;

/// `PleachVerify`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Verify {
    pub(crate) logits: Address,
    pub(crate) rows: Address,
    pub(crate) cu_rows: Address,
    pub(crate) sampling: Address,
    pub(crate) draft_probs: Address,
    pub(crate) token_counts: Address,
    pub(crate) bias: Address,
    pub(crate) grammar_mask: Address,
    pub(crate) finished: Address,
    pub(crate) results: Address,
    pub(crate) verdicts: Address,
    pub(crate) sequences: i64,
    pub(crate) vocab_size: i64,
}

pub(crate) fn verify(arguments: Verify, rows: i64) -> Plan<Verify> {
    fit((0..=MAX_GRID_X).contains(&rows) && arguments.sequences >= 0)?;
    fit((1..=1 << 19).contains(&arguments.vocab_size))?;
    let rows = if arguments.sequences == 0 { 0 } else { rows };
    line(kernel("verify", "", 0), rows, VERIFY_THREADS, arguments)
}

/// `PleachScatter`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Scatter {
    pub(crate) table: Address,
    pub(crate) entries: Address,
    pub(crate) count: i64,
    pub(crate) size: i64,
}

pub(crate) fn scatter(arguments: Scatter) -> Plan<Scatter> {
    let Scatter { count, size, .. } = arguments;
    fit((0..=MAX_GRID_X).contains(&count) && (0..=1 << 32).contains(&size))?;
    if count == 0 {
        return Ok(Vec::new());
    }
    line(kernel("scatter", "", 0), div_up(count, VERIFY_THREADS), VERIFY_THREADS, arguments)
}
