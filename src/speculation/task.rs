//! One sequence's part of a proposal: what drafting reads of it, and the draft tokens that come of it.

use super::{Proposal, SpeculationState};
use crate::grammar::GrammarState;
use crate::kv_cache::BlockTable;
use crate::sampling::{Draws, History, SamplingParams};

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
    /// Tokens as penalties and restrictions see them; the same before and after.
    pub history: &'a mut History,
    /// The sequence's random numbers.
    pub draws: Draws,
    /// What the sequence must follow. The draft model's tokens are drawn under its mask, copies end
    /// at the first token it refuses, and all are followed in it.
    pub grammar: Option<&'a mut GrammarState>,
    /// What speculation remembers of the sequence.
    pub state: &'a mut SpeculationState,
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
