//! One sequence's place in its grammar.

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::GrammarError;

/// Follows a sequence, and draft tokens beyond its end. The mask after each draft token is computed
/// once, for whoever asks first: the proposer or the verification.
pub struct GrammarState {
    matcher: Matcher,
    /// Draft tokens followed.
    drafted: usize,
    /// `masks[i]`: what may come after `i` draft tokens.
    masks: Vec<SimpleVob>,
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarState").field("drafted", &self.drafted).finish_non_exhaustive()
    }
}

impl GrammarState {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self { matcher, drafted: 0, masks: Vec::new() }
    }

    /// Draft tokens followed so far.
    #[must_use]
    pub fn drafted(&self) -> usize {
        self.drafted
    }

    /// Follows a draft token; `false`, and nothing done, where the grammar refuses it.
    pub fn draft(&mut self, id: u32) -> bool {
        // Nothing follows the end, and a mask that cannot be computed refuses everything.
        if self.matcher.is_stopped() || !self.mask(self.drafted).is_ok_and(|m| m.is_allowed(id)) {
            return false;
        }
        let followed = self.matcher.consume_token(id).is_ok();
        self.drafted += usize::from(followed);
        followed
    }

    /// The longest allowed token that spells what has to come after the draft tokens followed so far, and whether no other
    /// token may come.
    pub fn forced(&mut self) -> Option<(u32, bool)> {
        if self.matcher.is_stopped() {
            return None;
        }
        let env = self.matcher.tok_env().ok()?;
        let trie = env.tok_trie();
        let mask = self.mask(self.drafted).ok()?;
        // Tokens that begin with different bytes: nothing has to come.
        let mut begins = mask.iter().map(|id| trie.token(id).first());
        let first = begins.next()?;
        if begins.any(|other| other != first) {
            return None;
        }
        if mask.num_set() == 1 {
            return Some((mask.iter().next()?, true));
        }
        // A copy is asked: the library goes on from what it found to be forced.
        let text = self.matcher.clone().compute_ff_bytes();
        let spelled =
            self.masks[self.drafted].iter().filter(|id| text.starts_with(trie.token(*id)));
        spelled.max_by_key(|id| trie.token(*id).len()).map(|id| (id, false))
    }

    /// Logits as they are after `place` followed draft tokens, with negative infinity where the
    /// grammar refuses the token. Row `i` of `logits` is token `ids[i]`, or token `i` without `ids`.
    ///
    /// # Errors
    /// [`GrammarError`] if the grammar became too costly.
    pub fn masked<'a>(
        &mut self,
        place: usize,
        logits: &[f32],
        ids: Option<&[u32]>,
        buffer: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], GrammarError> {
        let mask = self.mask(place)?;
        buffer.clear();
        buffer.extend(logits.iter().enumerate().map(|(row, &logit)| {
            let id = ids.map_or(row as u32, |ids| ids[row]);
            if mask.is_allowed(id) { logit } else { f32::NEG_INFINITY }
        }));
        Ok(buffer)
    }

    /// Computes what may come after each of `count` followed draft tokens, and after none.
    ///
    /// # Errors
    /// [`GrammarError`] if the grammar became too costly.
    pub fn compute_masks(&mut self, count: usize) -> Result<(), GrammarError> {
        (0..=count).try_for_each(|place| self.mask(place).map(|_| ()))
    }

    /// The masks computed so far, a bit for each token.
    pub fn masks(&self) -> impl Iterator<Item = &[u32]> {
        self.masks.iter().map(SimpleVob::as_slice)
    }

    fn mask(&mut self, place: usize) -> Result<&SimpleVob, GrammarError> {
        if place == self.masks.len() && place == self.drafted {
            let mask = self.matcher.compute_mask_or_eos();
            self.masks.push(mask.map_err(|e| stuck(&e))?);
        }
        Ok(&self.masks[place])
    }

    /// Ends a round: the first `accepted` draft tokens stand, then comes `last`.
    ///
    /// # Errors
    /// [`GrammarError`] if the grammar refuses it or became too costly.
    pub fn commit(&mut self, accepted: usize, last: u32) -> Result<(), GrammarError> {
        self.masks.clear();
        let back = std::mem::take(&mut self.drafted) - accepted;
        let moved = self.matcher.rollback(back).and_then(|()| self.matcher.consume_token(last));
        moved.map_err(|e| stuck(&e))
    }

    /// Takes back all draft tokens, as if none had been followed. A grammar that became too costly refuses whatever comes
    /// next.
    pub fn take_back(&mut self) {
        self.masks.clear();
        let _ = self.matcher.rollback(std::mem::take(&mut self.drafted));
    }

    /// Whether nothing can follow but the end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

/// Why a grammar cannot be followed; the library's notes on its own state are for nobody.
fn stuck(error: &dyn std::fmt::Display) -> GrammarError {
    let text = error.to_string();
    GrammarError(text.split("\n<").next().unwrap_or(&text).trim_end().to_owned())
}
