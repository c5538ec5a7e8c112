//! Drafting for all sequences of a step: at each position the client's prediction, an n-gram match or
//! the draft model, whichever promises most, for as long as a draft token is worth what it costs.

use super::draft_model::DraftModel;
use super::proposer::LeftOut;
use super::{DraftStep, DraftToken, Load, Match, Prices, Proposal, Proposer, Speculation};
use crate::grammar::GrammarState;
use crate::kv_cache::BlockTable;
use crate::model::Forward;
use crate::sampling::{Draws, History, Processor, SamplingParams};
use pleach_kernels::{arg_max, sum_exp};

/// A chance of acceptance under which drafting is tried even where it has failed so far.
const HOPE: f64 = 0.8;
/// Rounds that catching up on a text is shared by, at most.
const HORIZON: usize = 64;
/// Weight of a new round in the usage of the draft model, and the least usage that is reckoned with.
const USAGE: f64 = 0.005;
const RARELY: f64 = 0.1;

/// One sequence's part of a proposal.
#[derive(Debug)]
pub struct ProposeTask<'a> {
    /// All known tokens. Draft tokens follow them while they are found; afterwards they are gone.
    pub tokens: &'a mut Vec<u32>,
    /// Draft tokens wanted at most.
    pub num_tokens: usize,
    /// Tokens that the sequence can still get.
    pub tokens_left: usize,
    /// Tokens behind which nothing follows.
    pub ends: &'a [u32],
    /// The sequence's blocks, with room for all of it.
    pub table: &'a BlockTable,
    /// How tokens are drawn.
    pub params: &'a SamplingParams,
    /// Tokens as penalties see them; the same before and after.
    pub history: &'a mut History,
    /// The sequence's random numbers.
    pub draws: Draws,
    /// What the sequence must follow. The draft model's tokens are drawn under its mask, copies end
    /// at the first token it refuses, and all are followed in it.
    pub grammar: Option<&'a mut GrammarState>,
    /// What speculation remembers of the sequence.
    pub state: &'a mut Speculation,
    /// The outcome.
    pub proposal: Proposal,
}

impl ProposeTask<'_> {
    /// Takes back whatever was drafted behind the first `known` tokens.
    pub fn give_up(&mut self, known: usize) {
        if self.params.uses_history() {
            self.tokens[known..].iter().for_each(|&id| self.history.pop(id));
        }
        self.tokens.truncate(known);
        self.proposal = Proposal::default();
    }
}

/// A task at work.
struct Chain<'t, 'a> {
    task: &'t mut ProposeTask<'a>,
    /// Chance that all draft tokens so far are accepted.
    chance: f64,
    /// Its row in the last pass of the draft model.
    row: Option<u32>,
    closed: bool,
}

/// The draft model, as a chain that might ask it sees it.
#[derive(Clone, Copy)]
struct Asked<'a> {
    draft: &'a DraftModel,
    /// Chains that ask at a time.
    sharing: usize,
    /// The pass's place in the round.
    step: DraftStep,
    /// Share of the rounds in which the draft model was asked, of late.
    usage: f64,
}

/// What may be spent, in tokens, on asking the draft model where it does not promise to pay, so that what has become
/// better is noticed: a hundredth of what is generated.
#[derive(Debug, Clone, Copy)]
struct Trials {
    budget: f64,
}

impl Trials {
    /// Share of the generated tokens.
    const SHARE: f64 = 0.01;
    /// Tokens that can be saved up: enough to read a prompt of a few hundred tokens.
    const MOST: f64 = 10.0;

    fn earn(&mut self, rounds: usize) {
        self.budget = (self.budget + Self::SHARE * rounds as f64).min(Self::MOST);
    }

    /// Spends `price` where there is so much.
    fn spend(&mut self, price: f64) -> bool {
        let enough = price <= self.budget;
        if enough {
            self.budget -= price;
        }
        enough
    }
}

/// Proposes draft tokens for all sequences, with a draft model or without.
pub struct Cascade {
    draft: Option<DraftModel>,
    processor: Processor,
    trials: Trials,
    /// Share of the rounds in which the draft model was asked, of late.
    usage: f64,
}

impl Cascade {
    /// A cascade over a draft model, where there is one.
    #[must_use]
    pub fn new(draft: Option<DraftModel>) -> Self {
        let trials = Trials { budget: 1.0 };
        Self { draft, processor: Processor::new(), trials, usage: 1.0 }
    }

    /// The draft model.
    #[must_use]
    pub fn draft(&self) -> Option<&DraftModel> {
        self.draft.as_ref()
    }

    /// The draft model, to measure it or take its report.
    pub fn draft_mut(&mut self) -> Option<&mut DraftModel> {
        self.draft.as_mut()
    }

    /// Puts another draft model in the place of the old one.
    pub fn set_draft(&mut self, draft: DraftModel) {
        self.draft = Some(draft);
        self.usage = 1.0;
    }

    /// Fills in the proposals for a pass of `target` that is `load` without them. Failures of the
    /// draft model leave them short or empty and never reach the caller otherwise.
    pub fn propose(
        &mut self,
        tasks: &mut [ProposeTask<'_>],
        target: &mut dyn Forward,
        mut load: Load,
        prices: &Prices<'_>,
    ) {
        let chain = |task| Chain { task, chance: 1.0, row: None, closed: false };
        let mut chains: Vec<Chain<'_, '_>> = tasks.iter_mut().map(chain).collect();
        for chain in &mut chains {
            let task = &mut *chain.task;
            if let Some(index) = &mut task.state.index {
                index.extend(task.tokens);
                task.state.found = task.state.found.or_else(|| index.find(task.tokens));
            }
        }
        if let Some(draft) = &mut self.draft {
            // All that was read is known before anybody goes on from it.
            for Chain { task, .. } in &mut chains {
                draft.note(&mut task.state.draft, task.table, task.tokens.len());
            }
            for Chain { task, .. } in &mut chains {
                task.state.draft = draft.view(task.state.draft, task.table, task.tokens.len());
            }
        }
        self.trials.earn(chains.len());
        let mut step = DraftStep::First;
        loop {
            let draft = self.draft.as_ref().filter(|draft| !draft.is_broken());
            let mut open = chains.iter().filter(|chain| !chain.closed).count();
            let mut drafting = Vec::new();
            for (index, chain) in chains.iter_mut().enumerate().filter(|(_, c)| !c.closed) {
                let usage = self.usage;
                let asked = draft.map(|draft| Asked { draft, sharing: open, step, usage });
                if chain.copy(&mut load, prices, asked, &mut self.trials) {
                    drafting.push(index);
                } else {
                    chain.closed = true;
                    open -= 1;
                }
            }
            if drafting.is_empty() {
                break;
            }
            self.pass(&mut chains, &drafting, target, &mut load, prices, step);
            step = DraftStep::Further;
        }
        for Chain { task, .. } in chains.iter().filter(|chain| chain.task.state.draft_model) {
            let asked = f64::from(u8::from(task.proposal.passes > 0));
            self.usage += USAGE * (asked - self.usage);
        }
        for Chain { task, .. } in chains {
            let drafted = &task.proposal.tokens;
            task.tokens.truncate(task.tokens.len() - drafted.len());
            if task.params.uses_history() {
                drafted.iter().for_each(|token| task.history.pop(token.id));
            }
        }
    }

    /// One pass of the draft model: at most one more token for each of the `drafting` chains.
    fn pass(
        &mut self,
        chains: &mut [Chain<'_, '_>],
        drafting: &[usize],
        target: &mut dyn Forward,
        load: &mut Load,
        prices: &Prices<'_>,
        step: DraftStep,
    ) {
        let Self { draft: Some(draft), processor, .. } = self else { return };
        draft.clear();
        let mut complete = Vec::new();
        for &index in drafting {
            let last = chains[index].row;
            let task = &mut *chains[index].task;
            let known = task.tokens.len() - task.proposal.tokens.len();
            match draft.add(task.state, task.table, task.tokens, known, last) {
                None => continue,
                Some(false) => {}
                Some(true) => {
                    chains[index].row = Some(complete.len() as u32);
                    complete.push(index);
                }
            }
            chains[index].task.proposal.passes += 1;
        }
        let ids = draft.draft_vocab().cloned();
        let head_rows = draft.head_rows();
        let (mut failures, mut masked) = (0, Vec::new());
        let Some(logits) = draft.run(target, step) else { return };
        for (index, logits) in complete.into_iter().zip(logits.chunks_exact(head_rows)) {
            let chain = &mut chains[index];
            let task = &mut *chain.task;
            let place = task.proposal.tokens.len();
            let logits = match &mut task.grammar {
                None => logits,
                // Where the draft model knows no token that may come, the chain ends.
                Some(grammar) => match grammar.masked(place, logits, ids.as_deref(), &mut masked) {
                    Ok(masked) if masked.iter().any(|l| *l != f32::NEG_INFINITY) => masked,
                    _ => {
                        chain.closed = true;
                        continue;
                    }
                },
            };
            let drawn = processor.distribution(logits, ids.as_deref(), task.params, task.history);
            let Ok(draft_probs) = drawn.inspect_err(|error| {
                tracing::warn!(%error, "the draft model failed; its sequence goes on without");
            }) else {
                (task.state.draft.failed, chain.closed) = (true, true);
                failures += 1;
                continue;
            };
            // Decided before the token is drawn, so that what is drawn stays unbiased.
            let confidence = confidence(logits);
            let chance = chain.chance * task.state.acceptance.confident(confidence);
            let id = task.draws.draft(&draft_probs, task.tokens.len());
            if chance < prices.rows(*load, 1, task.tokens.len()) {
                chain.closed = true;
                let coupled = task.draws.is_coupled().then_some(id);
                task.proposal.left_out = Some(LeftOut { draft_probs, coupled, confidence });
                continue;
            }
            chain.chance = chance;
            *load = load.further(1, task.tokens.len());
            let proposer = Proposer::DraftModel;
            chain.push(DraftToken { id, draft_probs, proposer, confidence });
        }
        draft.failures += failures;
    }
}

impl Chain<'_, '_> {
    /// Copies what is worth copying. Returns whether the draft model should go on; `None` without one.
    fn copy(
        &mut self,
        load: &mut Load,
        prices: &Prices<'_>,
        asked: Option<Asked<'_>>,
        trials: &mut Trials,
    ) -> bool {
        loop {
            let room = self.task.num_tokens - self.task.proposal.tokens.len();
            if room == 0 || self.closed {
                return false;
            }
            let value = |asked| self.draft_value(room, *load, prices, asked, trials);
            let drafting = asked.map_or(0.0, value);
            let context = self.task.tokens.len();
            let copies = [self.predicted(), self.matching()].into_iter().flatten();
            let best = copies
                .map(|(proposer, at, available)| {
                    let acceptance = &self.task.state.acceptance;
                    let chance = |place: usize| acceptance.copied(proposer, at.length + place);
                    let price = |length| prices.rows(*load, length, context);
                    let (length, value) = best(room.min(available), self.chance, chance, price);
                    (proposer, at, length, value)
                })
                .reduce(|a, b| if b.3 > a.3 { b } else { a });
            match best {
                Some((proposer, at, length, value)) if value > drafting.max(0.0) => {
                    *load = load.further(self.take(proposer, at, length), context);
                }
                _ => return drafting > 0.0,
            }
        }
    }

    /// The client's prediction, where the output follows it: the match and the tokens left.
    fn predicted(&self) -> Option<(Proposer, Match, usize)> {
        let prediction = self.task.state.prediction.as_ref()?;
        let at = prediction.position().filter(|_| self.task.proposal.tokens.is_empty())?;
        Some((Proposer::Prediction, at, prediction.text().len() - at.next))
    }

    /// The n-gram match of the known and draft tokens. It may run into the tokens it adds.
    fn matching(&self) -> Option<(Proposer, Match, usize)> {
        let state = &self.task.state;
        let at = match self.task.proposal.tokens.len() {
            0 => state.found?,
            _ => state.index.as_ref()?.find(self.task.tokens)?,
        };
        Some((Proposer::Ngram, at, usize::MAX))
    }

    /// Adds `length` copied tokens, fewer where one of them ends the sequence or the grammar refuses it;
    /// returns how many.
    fn take(&mut self, proposer: Proposer, at: Match, length: usize) -> usize {
        let before = self.task.proposal.tokens.len();
        for place in 0..length {
            let state = &self.task.state;
            let text = match (proposer, &state.prediction) {
                (Proposer::Prediction, Some(prediction)) => prediction.text(),
                _ => &self.task.tokens[..],
            };
            let id = text[at.next + place];
            self.chance *= state.acceptance.copied(proposer, at.length + place);
            self.push(DraftToken::copied(id, proposer));
            if self.closed {
                break;
            }
        }
        self.task.proposal.tokens.len() - before
    }

    /// Adds a token, unless the grammar refuses it.
    fn push(&mut self, token: DraftToken) {
        let task = &mut *self.task;
        if task.grammar.as_mut().is_some_and(|grammar| !grammar.draft(token.id)) {
            self.closed = true;
            return;
        }
        self.closed = task.ends.contains(&token.id);
        task.tokens.push(token.id);
        if task.params.uses_history() {
            task.history.push(token.id);
        }
        task.proposal.tokens.push(token);
    }

    /// Tokens that the draft model promises beyond what it costs, with up to `room` of its own.
    fn draft_value(
        &self,
        room: usize,
        load: Load,
        prices: &Prices<'_>,
        asked: Asked<'_>,
        trials: &mut Trials,
    ) -> f64 {
        let Asked { draft, sharing, step, usage } = asked;
        let task = &*self.task;
        let state = &*task.state;
        let drafted = &task.proposal.tokens;
        let own = drafted.iter().rev().take_while(|t| t.proposer == Proposer::DraftModel).count();
        let missing = draft.missing(state, task.tokens.len(), drafted.len(), own);
        let may = state.draft_model && !state.draft.failed;
        let Some(missing) = missing.filter(|_| may) else { return 0.0 };
        // Catching up is paid once and used by the rounds to come that ask.
        let catch_up = (prices.draft_pass(step, missing) - prices.draft_pass(step, 1)).max(0.0);
        let rounds = (task.tokens_left.min(HORIZON) as f64 * usage.max(RARELY)).max(1.0);
        let context = task.tokens.len();
        let pass = |step| prices.draft_pass(step, sharing) / sharing as f64;
        let (next, further) = (pass(step), pass(DraftStep::Further));
        let price = |length: usize| {
            prices.rows(load, length, context) + next + (length as f64 - 1.0) * further
        };
        let value = |alpha: f64| best(room, self.chance, |_| alpha, price).1 - catch_up / rounds;
        let promised = value(state.acceptance.draft_model());
        if promised > 0.0 || !drafted.is_empty() {
            return promised;
        }
        // Now and then it is tried where it could pay if only it were better.
        let hoped = value(HOPE);
        if hoped > 0.0 && trials.spend(catch_up + price(1)) { hoped } else { promised }
    }
}

/// The number of tokens, up to `room`, with the most expected accepted tokens beyond their price, and
/// that surplus. They follow tokens that all stand with chance `before`.
fn best(
    room: usize,
    before: f64,
    chance: impl Fn(usize) -> f64,
    price: impl Fn(usize) -> f64,
) -> (usize, f64) {
    let (mut best, mut surplus) = (0, 0.0);
    let (mut tokens, mut all) = (0.0, before);
    for length in 1..=room {
        all *= chance(length - 1);
        tokens += all;
        if tokens - price(length) > surplus {
            (best, surplus) = (length, tokens - price(length));
        }
    }
    (best, surplus)
}

/// Probability of the most likely token at temperature 1.
fn confidence(logits: &[f32]) -> f32 {
    match arg_max(logits) {
        Ok(Some((_, max))) => 1.0 / sum_exp(logits, max),
        _ => 0.0,
    }
}
