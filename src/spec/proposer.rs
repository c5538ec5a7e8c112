//! The draft model as proposer: catches up on the tokens it has not seen, then drafts one token per
//! pass for all sequences together.
//!
//! Its K/V cache has the shape of the target's and is indexed by the same block tables: a draft
//! token's position is reserved for the target anyway, and rollback is one truncation for both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::grammar::GrammarState;
use crate::kv_cache::BlockTable;
use crate::model::{Forward, ModelConfig, Rows};
use crate::sampling::{Distribution, Draws, History, Processor, SamplingParams, log_sum_exp};

/// A chain of draft tokens ends where the draft model's most likely token is less likely than this:
/// the target would probably reject it.
pub const MIN_DRAFT_CONFIDENCE: f32 = 0.2;

/// A proposed token and the distribution it was drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftToken {
    /// Token id.
    pub id: u32,
    /// The draft model's distribution at its position, after the request's own processing.
    pub draft_probs: Distribution,
}

/// What the proposer remembers of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProposerState {
    /// Positions in the draft model's cache. At most the known tokens but the last.
    pub computed: usize,
    /// Whether the draft model failed on this sequence, which then goes on without.
    pub failed: bool,
}

/// One sequence's part of a proposal.
#[derive(Debug)]
pub struct ProposeTask<'a> {
    /// All known tokens.
    pub tokens: &'a [u32],
    /// Positions the draft model should have seen; all known tokens where it is to draft.
    pub catch_up: usize,
    /// Draft tokens wanted at most; 0 only catches up.
    pub num_tokens: usize,
    /// The sequence's blocks, with room for all of it.
    pub table: &'a BlockTable,
    /// How tokens are drawn.
    pub params: &'a SamplingParams,
    /// Tokens as penalties see them; the same before and after.
    pub history: &'a mut History,
    /// The sequence's random numbers.
    pub draws: Draws,
    /// What the sequence must follow; draft tokens are drawn under its mask and followed in it.
    pub grammar: Option<&'a mut GrammarState>,
    /// The proposer's memory of the sequence.
    pub state: &'a mut ProposerState,
    /// The outcome.
    pub proposal: Proposal,
}

/// Draft tokens of one sequence.
#[derive(Debug, Default)]
pub struct Proposal {
    /// Draft tokens in order; may be fewer than wanted.
    pub tokens: Vec<DraftToken>,
    /// Forward passes the sequence took part in.
    pub passes: u64,
}

/// One forward pass of the draft model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftPass {
    /// Rows computed.
    pub rows: usize,
    /// Whether no sequence had more to catch up on than a round leaves behind.
    pub decode: bool,
    /// Seconds it took.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: u64,
}

/// A row of the pass being computed: the task it drafts for.
type LogitTasks = Vec<usize>;

/// Proposes with a draft model.
pub struct DraftModelProposer {
    model: Box<dyn Forward>,
    rows: Rows,
    processor: Processor,
    max_rows: usize,
    stop_unsure: bool,
    broken: bool,
    passes: Vec<DraftPass>,
    failures: u64,
}

impl DraftModelProposer {
    /// A proposer whose passes have at most `max_rows` rows. `stop_unsure` ends a chain below
    /// [`MIN_DRAFT_CONFIDENCE`].
    #[must_use]
    pub fn new(model: Box<dyn Forward>, max_rows: usize, stop_unsure: bool) -> Self {
        Self {
            model,
            rows: Rows::default(),
            processor: Processor::new(),
            max_rows,
            stop_unsure,
            broken: false,
            passes: Vec::new(),
            failures: 0,
        }
    }

    /// The draft model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Rows of the draft model's head.
    #[must_use]
    pub fn head_rows(&self) -> usize {
        self.model.head_rows()
    }

    /// The draft model itself, to measure it.
    pub fn model_mut(&mut self) -> &mut dyn Forward {
        self.model.as_mut()
    }

    /// Whether the draft model failed for good.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Passes and failures since the last call.
    pub fn take_report(&mut self) -> (Vec<DraftPass>, u64) {
        (std::mem::take(&mut self.passes), std::mem::take(&mut self.failures))
    }

    /// Fills in the proposals. Failures of the draft model leave them short or empty and never
    /// reach the caller otherwise.
    pub fn propose(&mut self, tasks: &mut [ProposeTask<'_>]) {
        while !self.broken {
            let drafting = self.fill_rows(tasks);
            if self.rows.is_empty() {
                break;
            }
            self.run(tasks, &drafting);
        }
        for task in tasks {
            if task.params.uses_history() {
                task.proposal.tokens.iter().for_each(|token| task.history.pop(token.id));
            }
        }
    }

    /// Gathers the next pass: whatever each task has to catch up on, then its newest draft token.
    /// Returns the tasks whose next token the pass decides, in order of their logits.
    fn fill_rows(&mut self, tasks: &mut [ProposeTask<'_>]) -> LogitTasks {
        self.rows.clear();
        let mut drafting = LogitTasks::new();
        for (index, task) in tasks.iter_mut().enumerate() {
            let room = self.max_rows - self.rows.len();
            let drafted = task.proposal.tokens.len();
            let end = task.catch_up + drafted;
            let start = task.state.computed;
            let wants_more = task.num_tokens > drafted;
            let idle = start >= end || (drafted > 0 && !wants_more);
            if room == 0 || idle || task.state.failed {
                continue;
            }
            let stop = end.min(start + room);
            let token_at = |position: usize| match position.checked_sub(task.tokens.len()) {
                None => task.tokens[position],
                Some(place) => task.proposal.tokens[place].id,
            };
            let drafts = stop == end && wants_more;
            self.rows.push(task.table, start, (start..stop).map(token_at), usize::from(drafts));
            task.state.computed = stop;
            task.proposal.passes += 1;
            if drafts {
                drafting.push(index);
            }
        }
        drafting
    }

    /// Runs the pass and draws one draft token for each of the `drafting` tasks.
    fn run(&mut self, tasks: &mut [ProposeTask<'_>], drafting: &[usize]) {
        let head_rows = self.model.head_rows();
        let ids = self.model.draft_vocab().cloned();
        let (num_rows, flops) = (self.rows.len(), self.rows.flops(self.model.config(), head_rows));
        let started = Instant::now();
        let (model, rows) = (self.model.as_mut(), &self.rows);
        let forward = move || {
            let model = model; // moved in, so that the logits may leave the closure
            model.forward(rows)
        };
        // The draft is a convenience: whatever goes wrong in it must not end the sequence.
        let Ok(logits) = catch_unwind(AssertUnwindSafe(forward)) else {
            tracing::error!("the draft model panicked; going on without speculation");
            self.broken = true;
            self.failures += 1;
            return;
        };
        let seconds = started.elapsed().as_secs_f64();
        let decode = num_rows <= 2 * drafting.len();
        self.passes.push(DraftPass { rows: num_rows, decode, seconds, flops });
        let mut masked = Vec::new();
        for (&index, logits) in drafting.iter().zip(logits.chunks_exact(head_rows)) {
            let task = &mut tasks[index];
            let drafted = task.proposal.tokens.len();
            let logits = match &mut task.grammar {
                None => logits,
                // Where the draft model knows no token that may come, the chain ends.
                Some(grammar) => match grammar.masked(drafted, logits, ids.as_deref(), &mut masked)
                {
                    Ok(masked) if masked.iter().any(|l| *l != f32::NEG_INFINITY) => masked,
                    _ => {
                        task.num_tokens = drafted;
                        continue;
                    }
                },
            };
            let drawn =
                self.processor.distribution(logits, ids.as_deref(), task.params, task.history);
            let draft_probs = match drawn {
                Ok(draft_probs) => draft_probs,
                Err(error) => {
                    tracing::warn!(%error, "the draft model failed; its sequence goes on without");
                    task.state.failed = true;
                    task.num_tokens = task.proposal.tokens.len();
                    self.failures += 1;
                    continue;
                }
            };
            // Decided before the token is drawn, so that what is drawn stays unbiased.
            if self.stop_unsure && confidence(logits) < MIN_DRAFT_CONFIDENCE {
                task.num_tokens = task.proposal.tokens.len();
                continue;
            }
            let position = task.tokens.len() + task.proposal.tokens.len();
            let id = task.draws.draft(&draft_probs, position);
            if task.grammar.as_mut().is_some_and(|grammar| !grammar.draft(id)) {
                task.num_tokens = drafted; // the grammar is complete
                continue;
            }
            if task.params.uses_history() {
                task.history.push(id);
            }
            task.proposal.tokens.push(DraftToken { id, draft_probs });
        }
    }
}

/// Probability of the most likely token at temperature 1.
fn confidence(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max - log_sum_exp(logits)).exp()
}
