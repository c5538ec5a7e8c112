//! What is spent on drafting that does not promise to pay, so that what has become better is noticed.

/// Tokens that may be spent on asking the draft model where it does not promise to pay: a hundredth of what is
/// generated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trials {
    budget: f64,
}

impl Default for Trials {
    /// One token, so that the first trial does not wait.
    fn default() -> Self {
        Self { budget: 1.0 }
    }
}

impl Trials {
    /// Share of the generated tokens.
    const SHARE: f64 = 0.01;
    /// Tokens that can be saved up: enough to read a prompt of a few hundred tokens.
    const MOST: f64 = 10.0;

    /// Earns the share of `rounds` tokens, at least one of which each of as many rounds generates.
    pub(super) fn earn(&mut self, rounds: usize) {
        self.budget = (self.budget + Self::SHARE * rounds as f64).min(Self::MOST);
    }

    /// Spends `price` where there is so much.
    pub(super) fn spend(&mut self, price: f64) -> bool {
        let enough = price <= self.budget;
        if enough {
            self.budget -= price;
        }
        enough
    }
}
