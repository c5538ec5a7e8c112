//! From a grammar's text to something that follows tokens.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::api::GrammarInit;
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, token_bytes_from_tokenizer_json};
use tokenizers::Tokenizer;

use super::bounds::{self, MAX_SOURCE_BYTES};
use super::{Grammar, GrammarError, GrammarSource, composition};

/// What the lexer of one grammar may cost to build: the library's own measure, 50,000 a millisecond.
const INITIAL_LEXER_FUEL: u64 = 1_000_000;
/// Lexer states of one sequence at most, 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 30_000;
/// Grammars that are kept for the next request, compiled or refused.
const MAX_CACHED: usize = 64;
/// Text of the grammars that are kept, in bytes: compiled they take some 30 times as much.
const MAX_CACHED_BYTES: usize = 4 * MAX_SOURCE_BYTES;

/// Compiles grammars for one tokenizer.
pub struct GrammarCompiler {
    factory: ParserFactory,
    known: Mutex<Known>,
}

/// What came of the grammars asked for last, by their text.
#[derive(Default)]
struct Known {
    results: HashMap<String, Result<Grammar, GrammarError>>,
    bytes: usize,
}

impl GrammarCompiler {
    /// A compiler for the tokens of a model with `vocab_size` ids; any of `eos_token_ids` may follow
    /// where the grammar may end.
    ///
    /// # Errors
    /// [`GrammarError`] if the bytes of the tokens cannot be told.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        eos_token_ids: &[u32],
    ) -> Result<Self, GrammarError> {
        let error = |e: &dyn std::fmt::Display| GrammarError(e.to_string());
        let eos: Vec<u32> =
            eos_token_ids.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
        let first = *eos.first().ok_or_else(|| error(&"the model has no end-of-sequence token"))?;
        let json = serde_json::to_value(tokenizer).map_err(|e| error(&e))?;
        // The library asserts what it expects of a tokenizer.
        let bytes = catch_unwind(|| token_bytes_from_tokenizer_json(&json))
            .map_err(|_| error(&"the bytes of the tokens cannot be told"))?;
        let mut bytes = bytes.map_err(|e| error(&e))?;
        bytes.resize(vocab_size, Vec::new());
        let info = TokRxInfo::new(vocab_size as u32, first);
        let trie = TokTrie::from(&info, &bytes).with_eos_tokens(&eos);
        let mut factory = ParserFactory::new_simple(&(Arc::new(ApproximateTokEnv::new(trie)) as _))
            .map_err(|e| error(&e))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.initial_lexer_fuel = INITIAL_LEXER_FUEL;
        limits.verbose_errors = false;
        Ok(Self { factory, known: Mutex::default() })
    }

    /// The bytes that an ordinary token stands for, which need not be a character.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let trie = self.factory.tok_env().tok_trie();
        let bytes = if (id as usize) < trie.vocab_size() { trie.token(id) } else { &[] };
        Some(bytes).filter(|b| b.first().is_some_and(|b| *b != TokTrie::SPECIAL_TOKEN_MARKER))
    }

    /// Compiles a grammar, or finds what came of it before. May take many milliseconds and much stack: requests have
    /// it done by [`GrammarWorkers`](super::GrammarWorkers).
    ///
    /// # Errors
    /// [`GrammarError`] if it is wrong, too long, too deep or too costly.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        if matches!(source, GrammarSource::Choice(choices) if choices.is_empty()) {
            return Err(GrammarError("must not be empty".into()));
        }
        let key = key(source)?;
        if let Some(known) = self.known().results.get(&key) {
            return known.clone();
        }
        let result = match source.parts() {
            Some(parts) => {
                composition::compile(&parts, |form| self.compile_whole(&source.with_form(form)))
            }
            None => self.compile_whole(source).map_err(|error| self.fault_of_form(source, error)),
        };
        self.known().keep(key, result.clone());
        result
    }

    fn compile_whole(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        bounds::check(source)?;
        let init = GrammarInit::Serialized(source.grammar());
        let parser =
            catch_unwind(AssertUnwindSafe(|| self.factory.create_parser_from_init_default(init)))
                .map_err(|_| GrammarError("cannot be compiled".into()))?;
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            // Of a fault of its own the library tells where in its code it is.
            let fault = error.starts_with("panic: ");
            return Err(GrammarError(if fault { "cannot be compiled".into() } else { error }));
        }
        let first = matcher.compute_mask().map_err(|e| GrammarError(e.to_string()))?;
        if first.is_zero() {
            return Err(GrammarError("admits no text at all".into()));
        }
        Ok(Grammar::new(matcher))
    }

    /// What is wrong with the form in a grammar, where that is the fault.
    fn fault_of_form(&self, source: &GrammarSource, error: GrammarError) -> GrammarError {
        match source {
            GrammarSource::Around { form, .. } => self.compile_whole(form).err().unwrap_or(error),
            _ => error,
        }
    }

    /// Has a grammar refused from now on.
    pub(super) fn refuse(&self, source: &GrammarSource, error: &GrammarError) {
        if let Ok(key) = key(source) {
            self.known().keep(key, Err(error.clone()));
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn keep(&mut self, key: String, result: Result<Grammar, GrammarError>) {
        // A grammar that was given up stays refused, even if it compiled in the end.
        if self.results.contains_key(&key) {
            return;
        }
        if self.results.len() >= MAX_CACHED || self.bytes + key.len() > MAX_CACHED_BYTES {
            *self = Self::default();
        }
        self.bytes += key.len();
        self.results.insert(key, result);
    }
}

/// The text that a grammar is known by.
fn key(source: &GrammarSource) -> Result<String, GrammarError> {
    let key = match source.parts() {
        Some(parts) => serde_json::to_string(&(source.surrounding(), &*parts)),
        None => serde_json::to_string(&source.grammar()),
    };
    let key = key.map_err(|e| GrammarError(e.to_string()))?;
    if key.len() > MAX_SOURCE_BYTES {
        return Err(GrammarError(format!("is longer than {MAX_SOURCE_BYTES} bytes")));
    }
    Ok(key)
}
