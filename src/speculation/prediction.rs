//! What the client expects as the answer, and how far the answer follows it.

use std::sync::Arc;

use super::Match;

/// Tokens of a match that are compared, at most.
const COMPARED: usize = 16;

/// A client's prediction of the output. It is followed from its start; where the output departs from
/// it, it is taken up again at the next place that agrees with the output's last tokens.
#[derive(Debug, Clone)]
pub struct PredictedOutput {
    text: Arc<[u32]>,
    next: usize,
    length: usize,
}

impl PredictedOutput {
    /// The prediction `text`, from its start.
    #[must_use]
    pub fn new(text: Arc<[u32]>) -> Self {
        Self { text, next: 0, length: COMPARED }
    }

    /// The predicted tokens.
    #[must_use]
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// Where the output stands in the prediction; `None` where it has left it, and at its end.
    #[must_use]
    pub fn position(&self) -> Option<Match> {
        let follows = self.length > 0 && self.next < self.text.len();
        follows.then_some(Match { next: self.next, length: self.length })
    }

    /// Takes in the newest token of `output`, which holds generated tokens alone.
    pub fn advance(&mut self, output: &[u32]) {
        let Some(&token) = output.last() else { return };
        if self.length > 0 && self.text.get(self.next) == Some(&token) {
            self.next += 1;
            self.length = (self.length + 1).min(COMPARED);
            return;
        }
        // Ahead first: an edit as a rule inserts or leaves out.
        let places = (self.next + 1..=self.text.len()).chain(1..=self.next);
        let common = |next: usize| {
            let agreeing = self.text[..next].iter().rev().zip(output.iter().rev());
            agreeing.take(COMPARED).take_while(|(predicted, sent)| predicted == sent).count()
        };
        let (mut best, mut length) = (self.next, 0);
        for next in places {
            let common = common(next);
            if common > length {
                (best, length) = (next, common);
            }
        }
        (self.next, self.length) = (best, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The predicted next token after each token of `output`, 0 for none.
    fn follow(text: &[u32], output: &[u32]) -> Vec<u32> {
        let mut prediction = PredictedOutput::new(text.into());
        let next = |p: &PredictedOutput| p.position().map_or(0, |at| p.text()[at.next]);
        let mut nexts = vec![next(&prediction)];
        for end in 1..=output.len() {
            prediction.advance(&output[..end]);
            nexts.push(next(&prediction));
        }
        nexts
    }

    #[test]
    fn follows_and_resumes() {
        assert_eq!(follow(&[1, 2, 3], &[1, 2, 3]), [1, 2, 3, 0]);
        assert_eq!(follow(&[], &[1]), [0, 0]);
        // Replaced: 9 in place of 2. Left out: 2. Inserted: 9.
        assert_eq!(follow(&[1, 2, 3, 4], &[1, 9, 3, 4]), [1, 2, 0, 4, 0]);
        assert_eq!(follow(&[1, 2, 3, 4], &[1, 3, 4]), [1, 2, 4, 0]);
        assert_eq!(follow(&[1, 2, 3, 4], &[1, 9, 2, 3]), [1, 2, 0, 3, 4]);
        // Ahead of where it was before behind, the longer match before either.
        assert_eq!(follow(&[7, 1, 5, 7, 2], &[7, 1, 7]), [7, 1, 5, 2]);
        assert_eq!(follow(&[6, 7, 1, 5, 7, 2], &[9, 6, 7]), [6, 0, 7, 1]);
    }
}
