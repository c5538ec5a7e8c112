//! A grammar that is ready to be followed.

use std::sync::Arc;

use llguidance::Matcher;

use super::{GrammarState, Loosened};

/// A compiled grammar, before its first token.
#[derive(Clone)]
pub struct Grammar {
    matcher: Arc<Matcher>,
    loosened: Arc<[Loosened]>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self { matcher: Arc::new(matcher), loosened: Arc::default() }
    }

    /// A sequence at its beginning. Shares nothing with other sequences.
    #[must_use]
    pub fn start(&self) -> GrammarState {
        GrammarState::new(self.matcher.deep_clone())
    }

    /// What is not followed of its schemas.
    #[must_use]
    pub fn loosened(&self) -> &[Loosened] {
        &self.loosened
    }

    /// The same, where this is not followed of its schemas.
    pub(super) fn with_loosened(self, loosened: Vec<Loosened>) -> Self {
        Self { loosened: loosened.into(), ..self }
    }

    /// What the library follows otherwise than it is written.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.matcher.deep_clone().grammar_warnings()
    }
}
