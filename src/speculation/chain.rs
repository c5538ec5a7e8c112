//! The draft tokens of one sequence as they grow: what a grammar forces, what is copied, and when the draft model is asked.

use super::draft_model::DraftModel;
use super::trials::Trials;
use super::{DraftStep, DraftToken, Match, Prices, ProposeTask, Proposer, Work};

/// A chance of acceptance under which drafting is tried even where it has failed so far.
const HOPE: f64 = 0.8;
/// Rounds that catching up on a text is shared by, at most.
const HORIZON: usize = 64;
/// The least usage of the draft model that is reckoned with.
const RARELY: f64 = 0.1;

/// A task at work.
pub(super) struct Chain<'t, 'a> {
    pub(super) task: &'t mut ProposeTask<'a>,
    /// Chance that all draft tokens so far are accepted.
    pub(super) chance: f64,
    /// Its row in the last pass of the draft model.
    pub(super) row: Option<u32>,
    /// Whether it has ended.
    pub(super) closed: bool,
}

/// Tokens that cost no pass of the draft model.
#[derive(Clone, Copy)]
enum Known {
    /// So many from a place on.
    Copy(Proposer, Match, usize),
    /// What the grammar leaves no choice about, with its chance.
    Forced(u32, f32),
}

/// The draft model, as a chain that might ask it sees it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) draft: &'a DraftModel,
    /// Chains that ask at a time.
    pub(super) sharing: usize,
    /// The pass's place in the round.
    pub(super) step: DraftStep,
    /// Share of the rounds in which the draft model was asked, of late.
    pub(super) usage: f64,
}

impl<'t, 'a> Chain<'t, 'a> {
    /// A chain without draft tokens yet.
    pub(super) fn new(task: &'t mut ProposeTask<'a>) -> Self {
        Self { task, chance: 1.0, row: None, closed: false }
    }

    /// Takes what the grammar forces, and copies what is worth copying. Returns whether the draft model should go on.
    pub(super) fn copy(
        &mut self,
        work: &mut Work,
        prices: &Prices<'_>,
        asked: Option<Asked<'_>>,
        trials: &mut Trials,
    ) -> bool {
        loop {
            let room = self.task.num_tokens - self.task.proposal.tokens.len();
            if room == 0 || self.closed {
                return false;
            }
            let value = |asked| self.draft_value(room, *work, prices, asked, trials);
            let drafting = asked.map_or(0.0, value);
            let context = self.task.tokens.len();
            let price = |length| prices.rows(*work, length, context);
            // The draft model, under the grammar's mask, knows better how the target spells what has to come.
            let forced = if drafting > 0.0 { None } else { self.forced() };
            // The grammar refuses copies that begin with another token than the only one.
            let only = forced.filter(|(_, chance)| *chance == 1.0).map(|(id, _)| id);
            let copies = [self.predicted(), self.matching()].into_iter().flatten();
            let copies = copies
                .filter(|(from, at, _)| only.is_none_or(|id| self.text(*from)[at.next] == id));
            let copies = copies.map(|(proposer, at, available)| {
                let acceptance = &self.task.state.acceptance;
                let chance = |place: usize| acceptance.copied(proposer, at.length + place);
                let (length, value) = best(room.min(available), self.chance, chance, price);
                (Known::Copy(proposer, at, length), value)
            });
            let forced = forced.map(|(id, chance)| {
                (Known::Forced(id, chance), self.chance * f64::from(chance) - price(1))
            });
            match copies.chain(forced).reduce(|a, b| if b.1 > a.1 { b } else { a }) {
                Some((known, value)) if value > drafting.max(0.0) => {
                    *work = work.further(self.take(known), context);
                }
                _ => return drafting > 0.0,
            }
        }
    }

    /// What the grammar leaves no choice about: a token, and the chance that the model spells it so.
    fn forced(&mut self) -> Option<(u32, f32)> {
        let (id, sole) = self.task.grammar.as_mut()?.forced()?;
        // What is learnt never becomes certain, since what is certain is not learnt from.
        let learnt = (self.task.state.acceptance.forced() as f32).min(1.0 - f32::EPSILON);
        Some((id, if sole { 1.0 } else { learnt }))
    }

    /// The text that a proposer copies from.
    fn text(&self, proposer: Proposer) -> &[u32] {
        match (proposer, &self.task.state.prediction) {
            (Proposer::Prediction, Some(prediction)) => prediction.text(),
            _ => self.task.tokens,
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

    /// Adds known tokens, fewer where one of them ends the sequence or the grammar refuses it; returns how many.
    fn take(&mut self, known: Known) -> usize {
        let before = self.task.proposal.tokens.len();
        match known {
            Known::Forced(id, chance) => {
                self.chance *= f64::from(chance);
                let token = DraftToken::copied(id, Proposer::Grammar);
                self.push(DraftToken { confidence: chance, ..token });
            }
            Known::Copy(proposer, at, length) => {
                for place in 0..length {
                    let id = self.text(proposer)[at.next + place];
                    self.chance *= self.task.state.acceptance.copied(proposer, at.length + place);
                    self.push(DraftToken::copied(id, proposer));
                    if self.closed {
                        break;
                    }
                }
            }
        }
        self.task.proposal.tokens.len() - before
    }

    /// Adds a token, unless the grammar refuses it.
    pub(super) fn push(&mut self, token: DraftToken) {
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
        work: Work,
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
            prices.rows(work, length, context) + next + (length as f64 - 1.0) * further
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
