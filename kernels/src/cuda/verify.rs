//! Verification where the logits are: draft tokens, how sequences draw and what they may not say go to the device,
//! and a few numbers a row come back.

use std::sync::Arc;

use super::calls::{self, Address};
use super::memory::Memory;
use super::staging::Staging;
use super::{CudaError, Device, HostBuffer, Tensor};
use crate::DType;

const WHAT: &str = "verify";

/// `PLEACH_NONE`
const NONE: u32 = u32::MAX;

/// `PleachSampling`
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Sampling {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    /// Repetition, presence, frequency.
    penalties: [f32; 3],
    top_k: u64,
    seed: u64,
    position: u64,
    coupled: u32,
    token_counts: u32,
    bias: u32,
    _padding: u32,
}

/// `PleachVerifyRow`
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct VerifyRow {
    logits: u32,
    draft_token: u32,
    draft_probs: u32,
    grammar_mask: u32,
}

/// How one sequence draws; the fields are those of `SamplingParams` in the server.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// 0: the most likely token.
    pub temperature: f32,
    /// 1: all.
    pub top_p: f32,
    /// 0: all.
    pub min_p: f32,
    /// Repetition, presence and frequency penalty.
    pub penalties: [f32; 3],
    /// 0: all.
    pub top_k: u64,
    /// Key of the random numbers.
    pub seed: u64,
    /// Position of the token that the sequence's first row decides.
    pub position: u64,
    /// Whether a draft token stands if it is the target's own draw.
    pub coupled: bool,
}

/// One sequence's round.
#[derive(Debug, Clone)]
pub struct VerifySequence<'a> {
    /// The row of the logits that decides its first token; one more for each draft token follows.
    pub first_row: usize,
    /// Draft tokens, each with the probabilities it was drawn from; none where it was certain.
    pub draft: Vec<(u32, Vec<(u32, f32)>)>,
    /// How it draws.
    pub draw: Draw,
    /// Tokens that penalties see, with their number in the prompt and in what was generated; none without penalties.
    pub counts: Option<Vec<(u32, [u32; 2])>>,
    /// What is added to the logits of single tokens, each named once.
    pub bias: Vec<(u32, f32)>,
    /// The tokens that may come at each row, a bit for each id; or nothing, where all may.
    pub masks: Vec<&'a [u32]>,
}

/// What one row decided: `PleachRowResult`.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct VerifiedRow {
    /// [`Self::OK`], [`Self::NOT_FINITE`] or another number: no token is left.
    pub status: u32,
    /// 1 if the row's draft token stands.
    pub accepted: u32,
    /// The draft token, or the one in its place; that whose logit is no number.
    pub token: u32,
    /// Log-probability of `token` by the raw logits.
    pub log_prob: f32,
    /// Log-sum-exp of the raw logits.
    pub log_sum_exp: f32,
}

impl VerifiedRow {
    /// `PLEACH_ROW_OK`
    pub const OK: u32 = 0;
    /// `PLEACH_ROW_NOT_FINITE`
    pub const NOT_FINITE: u32 = 1;
}

/// A table of 32-bit numbers, zero but for a few.
#[derive(Default)]
struct Sparse {
    /// Place and value by turns.
    entries: Vec<u32>,
    rows: usize,
}

impl Sparse {
    /// Adds a row of `width` numbers; its index.
    fn row(&mut self, width: usize, values: impl Iterator<Item = (usize, u32)>) -> u32 {
        let first = self.rows * width;
        self.entries.extend(values.flat_map(|(place, value)| [(first + place) as u32, value]));
        self.rows += 1;
        self.rows as u32 - 1
    }
}

/// Numbers of a `PleachRowResult` and of a `PleachVerdict`.
const ROW: usize = size_of::<VerifiedRow>() / size_of::<u32>();
const VERDICT: usize = 3;

/// The rounds of one pass on a device; buffers grow to the largest seen.
pub struct Verifier {
    rows: usize,
    sequences: usize,
    /// `[rows, vocab_size]` of the logits.
    shape: [usize; 2],
    /// Where draws, rows, first rows, masks and the three tables' entries lie in the input.
    at: [usize; 7],
    /// What the host sends, the tables' entries included.
    input: Memory,
    /// What the input is given.
    numbers: Vec<u32>,
    staging: Staging,
    draft_probs: Memory,
    token_counts: Memory,
    bias: Memory,
    /// `u32 [sequences]`, zero between calls.
    finished: Memory,
    results: Tensor,
    on_host: HostBuffer,
}

impl Verifier {
    /// Empty buffers.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let memory = || Memory::new(device, 0);
        Ok(Self {
            rows: 0,
            sequences: 0,
            shape: [0; 2],
            at: [0; 7],
            input: memory()?,
            numbers: Vec::new(),
            staging: Staging::new(device)?,
            draft_probs: memory()?,
            token_counts: memory()?,
            bias: memory()?,
            finished: memory()?,
            results: Tensor::new(device, DType::F32, 0, 1)?,
            on_host: HostBuffer::new(device)?,
        })
    }

    /// Makes room for rounds of `sequences` with `rows` rows of `vocab` logits together. `drafted` says whether a draft
    /// model drafts, whose distributions come with its tokens.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn reserve(
        &mut self,
        sequences: usize,
        rows: usize,
        vocab: usize,
        drafted: bool,
    ) -> Result<(), CudaError> {
        let number = size_of::<u32>();
        let drafts = if drafted { rows.saturating_sub(sequences) } else { 0 };
        let seen = 2 * sequences * vocab;
        // Place and value of each entry, and a bit for each token of each row.
        let entries = 2 * (drafts * vocab + seen + sequences * vocab);
        let masks = rows * vocab.div_ceil(32);
        let fixed = sequences * size_of::<Sampling>() + rows * size_of::<VerifyRow>();
        let gaps = 4 * self.at.len() + sequences + 1;
        self.input.reserve(fixed + (entries + masks + gaps) * number)?;
        self.draft_probs.reserve(drafts * vocab * number)?;
        self.token_counts.reserve(seen * number)?;
        self.bias.reserve(sequences * vocab * number)?;
        self.reserve_finished(sequences)?;
        let results = rows * ROW + sequences * VERDICT;
        self.results.set_rows(results)?;
        self.on_host.reserve(&self.input.device, rows * ROW * number)
    }

    /// Makes room for the counters of so many sequences, which are zero between calls.
    fn reserve_finished(&mut self, sequences: usize) -> Result<(), CudaError> {
        let bytes = sequences * size_of::<u32>();
        if bytes > self.finished.bytes {
            self.finished.reserve(bytes)?;
            self.finished.fill_zero(bytes)?;
        }
        Ok(())
    }

    /// Takes on the rounds of all sequences of a pass whose logits have this shape, `[rows, vocab_size]`; before the
    /// pass, so that nothing waits for the copies.
    ///
    /// # Errors
    /// If a row, a token or a mask does not fit the logits, there is no memory left, or the device fails.
    pub fn set(
        &mut self,
        shape: [usize; 2],
        sequences: &[VerifySequence<'_>],
    ) -> Result<(), CudaError> {
        let vocab = shape[1];
        if let Some(reason) = unfit(shape, sequences) {
            return Err(CudaError::Argument { what: WHAT, reason });
        }
        self.shape = [0; 2];
        let (mut probs, mut counts, mut bias) =
            (Sparse::default(), Sparse::default(), Sparse::default());
        let (mut rows, mut cu_rows, mut draws) = (Vec::new(), vec![0u32], Vec::new());
        let (mut masks, words) = (Vec::new(), vocab.div_ceil(32));
        for sequence in sequences {
            for place in 0..=sequence.draft.len() {
                let draft = sequence.draft.get(place);
                let drawn_from = draft.map(|(_, probs)| probs).filter(|probs| !probs.is_empty());
                let grammar_mask = sequence.masks.get(place).map_or(NONE, |mask| {
                    masks.extend_from_slice(&mask[..words]);
                    (masks.len() / words) as u32 - 1
                });
                rows.push(VerifyRow {
                    logits: (sequence.first_row + place) as u32,
                    draft_token: draft.map_or(0, |(token, _)| *token),
                    draft_probs: drawn_from.map_or(NONE, |entries| {
                        let prob = |&(id, prob): &(u32, f32)| (id as usize, prob.to_bits());
                        probs.row(vocab, entries.iter().map(prob))
                    }),
                    grammar_mask,
                });
            }
            cu_rows.push(rows.len() as u32);
            let counted = |&(id, [prompt, generated]): &(u32, [u32; 2])| {
                [(2 * id as usize, prompt), (2 * id as usize + 1, generated)]
            };
            let token_counts = sequence
                .counts
                .as_ref()
                .map_or(NONE, |known| counts.row(2 * vocab, known.iter().flat_map(counted)));
            let added = |&(id, bias): &(u32, f32)| (id as usize, bias.to_bits());
            let bias = match &sequence.bias[..] {
                [] => NONE,
                some => bias.row(vocab, some.iter().map(added)),
            };
            let draw = &sequence.draw;
            draws.push(Sampling {
                temperature: draw.temperature,
                top_p: draw.top_p,
                min_p: draw.min_p,
                penalties: draw.penalties,
                top_k: draw.top_k,
                seed: draw.seed,
                position: draw.position,
                coupled: u32::from(draw.coupled),
                token_counts,
                bias,
                _padding: 0,
            });
        }
        let sections = [
            bytemuck::cast_slice(&draws),
            bytemuck::cast_slice(&rows),
            &cu_rows[..],
            &masks,
            &probs.entries,
            &counts.entries,
            &bias.entries,
        ];
        self.numbers.clear();
        self.at = sections.map(|section| {
            let start = self.numbers.len().next_multiple_of(4);
            self.numbers.resize(start, 0);
            self.numbers.extend_from_slice(section);
            start
        });
        let bytes: &[u8] = bytemuck::cast_slice(&self.numbers);
        self.input.grow(bytes.len())?;
        self.staging.send(bytes, &mut self.input)?;
        self.rows = rows.len();
        let entries = [4, 5, 6].map(|index| self.section(index));
        let device = Arc::clone(&self.input.device);
        for (table, sparse, width, entries) in [
            (&mut self.draft_probs, &probs, vocab, entries[0]),
            (&mut self.token_counts, &counts, 2 * vocab, entries[1]),
            (&mut self.bias, &bias, vocab, entries[2]),
        ] {
            let size = sparse.rows * width;
            table.grow(size * size_of::<u32>())?;
            table.fill_zero(size * size_of::<u32>())?;
            let count = sparse.entries.len() as i64 / 2;
            let (table, size) = (table.address, size as i64);
            // SAFETY: the table has `size` numbers, and the entries lie in the input.
            unsafe {
                let scatter = calls::Scatter { table, entries, count, size };
                device.start(WHAT, calls::scatter(scatter))
            }?;
        }
        self.reserve_finished(sequences.len())?;
        // Rows, then verdicts, which tell no more than the rows do.
        self.results.set_rows(self.rows * ROW + sequences.len() * VERDICT)?;
        (self.shape, self.sequences) = (shape, sequences.len());
        Ok(())
    }

    fn section(&self, index: usize) -> Address {
        self.input.address + (self.at[index] * size_of::<u32>()) as u64
    }

    /// Verifies what was taken on: a row for each draft token and one more, by sequence. Rows behind a sequence's
    /// first that is not accepted say nothing.
    ///
    /// # Errors
    /// If the logits are others than those announced, or the device fails.
    pub fn run(&mut self, logits: &Tensor) -> Result<&[VerifiedRow], CudaError> {
        let device = Arc::clone(&self.input.device);
        let here = Arc::ptr_eq(&device, &logits.memory.device);
        let [rows, vocab] = self.shape;
        let fits = logits.dtype == DType::F32 && logits.rows >= rows && logits.cols == vocab;
        if !here || !fits {
            let (dtype, shape) = (logits.dtype, logits.shape());
            let reason = format!("logits are {dtype:?} {shape:?}, not F32 {:?}", self.shape);
            return Err(CudaError::Argument { what: WHAT, reason });
        }
        let results = self.results.address();
        let io = calls::Verify {
            logits: logits.address(),
            rows: self.section(1),
            cu_rows: self.section(2),
            sampling: self.section(0),
            draft_probs: self.draft_probs.address,
            token_counts: self.token_counts.address,
            bias: self.bias.address,
            grammar_mask: self.section(3),
            finished: self.finished.address,
            results,
            verdicts: results + (self.rows * size_of::<VerifiedRow>()) as u64,
            sequences: self.sequences as i64,
            vocab_size: self.shape[1] as i64,
        };
        // SAFETY: everything is this device's; rows and tokens were checked against the logits, the tables' rows were
        // counted above, and the results hold all rows and verdicts.
        unsafe { device.start(WHAT, calls::verify(io, self.rows as i64)) }?;
        self.results.set_rows(self.rows * ROW)?;
        let all = std::iter::once(0..self.rows * ROW);
        Ok(bytemuck::cast_slice(self.on_host.read_rows(&self.results, all)?))
    }
}

/// What does not fit.
fn unfit([rows, vocab]: [usize; 2], sequences: &[VerifySequence<'_>]) -> Option<String> {
    let words = vocab.div_ceil(32);
    for (index, sequence) in sequences.iter().enumerate() {
        let needed = sequence.draft.len() + 1;
        if sequence.first_row + needed > rows {
            return Some(format!("sequence {index} needs rows beyond the {rows} there are"));
        }
        if !sequence.masks.is_empty()
            && (sequence.masks.len() != needed || sequence.masks.iter().any(|m| m.len() < words))
        {
            return Some(format!("the masks of sequence {index} do not cover its rows"));
        }
        let drawn = sequence.draft.iter().flat_map(|(_, probs)| probs.iter());
        let mut named = (drawn.map(|&(id, _)| id))
            .chain(sequence.counts.iter().flatten().map(|&(id, _)| id))
            .chain(sequence.bias.iter().map(|&(id, _)| id));
        if let Some(id) = named.find(|&id| id as usize >= vocab) {
            return Some(format!("sequence {index} names token {id} of {vocab}"));
        }
    }
    let planes = sequences.iter().map(|sequence| sequence.draft.len() + 2).sum::<usize>();
    (planes * vocab > u32::MAX as usize).then(|| format!("{planes} rows of {vocab} are too many"))
}
