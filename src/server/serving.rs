//! A model that is served: its names, its engine, and what turns texts into tokens and back.

use std::sync::{Arc, OnceLock};

use tokenizers::Tokenizer;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::adapters::{Adapters, ServedAdapter};
use super::drafts::Drafts;
use super::error::ApiError;
use super::queue::Queue;
use crate::checkpoint::Summary;
use crate::engine::EngineHandle;
use crate::grammar::{Busy, DEADLINE, Grammar, GrammarCompiler, GrammarSource, GrammarWorkers};
use crate::sampling::SamplingParams;
use crate::text::{ChatTemplate, Continuations, Mark};

/// A loaded model, ready to answer.
pub struct Serving {
    /// Its names in the API; answers carry the first.
    pub(super) names: Vec<String>,
    /// Further names that requests may use: those of its file and its source.
    aliases: Vec<String>,
    /// Its adapters.
    pub(super) adapters: Adapters,
    /// The engine it runs in.
    pub engine: EngineHandle,
    /// Where it comes from and what its files say of it, where they are known.
    pub(super) description: Option<(String, Summary)>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What stands for its tokens one by one.
    pub(super) texts: Continuations,
    /// Its chat template, where it has one.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// How tokens are drawn where a request does not say.
    pub(super) sampling: SamplingParams,
    /// The threads that compile grammars for its tokens; `None` where the bytes of tokens are not known.
    pub grammars: Option<GrammarWorkers>,
    /// Its drafts.
    pub(super) drafts: Drafts,
    /// Places for its requests.
    pub(super) queue: Arc<Queue>,
    /// Bytes that one token stands for, at most.
    longest_token: usize,
    /// The tokens that break repetitions where a request does not say what does; known once one asks for them.
    pub(super) usual_breakers: OnceLock<Arc<[Vec<u32>]>>,
}

impl Serving {
    /// A model as loaded, under its name; no requests may wait.
    #[must_use]
    pub fn new(
        name: String,
        engine: EngineHandle,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        eos_token_ids: Vec<u32>,
    ) -> Self {
        let longest_token = tokenizer.get_vocab(true).keys().map(String::len).max();
        let vocab_size = engine.limits().vocab_size;
        let compiler = GrammarCompiler::new(&tokenizer, vocab_size, &eos_token_ids);
        let compiler = compiler.map_err(|error| error.to_string());
        let start = |compiler| GrammarWorkers::start(Arc::new(compiler)).map_err(|e| e.to_string());
        let grammars = compiler
            .and_then(start)
            .inspect_err(|error| tracing::warn!(error, "serving without grammars"))
            .ok();
        let (tokenizer, longest_token) = (Arc::new(tokenizer), longest_token.unwrap_or(1).max(1));
        let (names, aliases) = (vec![name], Vec::new());
        let queue = Arc::new(Queue::new(engine.limits().max_num_seqs, 0));
        Self {
            names,
            aliases,
            adapters: Adapters::default(),
            engine,
            description: None,
            texts: Continuations::new(Arc::clone(&tokenizer)),
            tokenizer,
            template,
            eos_token_ids,
            sampling: SamplingParams::default(),
            grammars,
            drafts: Drafts::default(),
            queue,
            longest_token,
            usual_breakers: OnceLock::new(),
        }
    }

    /// Renames the model to `names`, where there are any; requests may call it by `aliases` too.
    #[must_use]
    pub fn named(mut self, names: &[String], aliases: Vec<String>) -> Self {
        self.aliases = aliases;
        if !names.is_empty() {
            self.aliases.append(&mut self.names);
            self.names = names.to_vec();
        }
        self
    }

    /// Sets how tokens are drawn where a request does not say.
    #[must_use]
    pub(super) fn sampling_by(self, sampling: SamplingParams) -> Self {
        Self { sampling, ..self }
    }

    /// Says where the model comes from, and what its files say of it.
    #[must_use]
    pub(super) fn described(self, source: String, summary: Summary) -> Self {
        Self { description: Some((source, summary)), ..self }
    }

    /// Gives the model drafts that can be changed.
    #[must_use]
    pub(super) fn with_drafts(self, drafts: Drafts) -> Self {
        Self { drafts, ..self }
    }

    /// Lets so many sequences wait beside those that run.
    #[must_use]
    pub fn with_waiting(self, waiting: usize) -> Self {
        let queue = Arc::new(Queue::new(self.engine.limits().max_num_seqs, waiting));
        Self { queue, ..self }
    }

    /// Gives the model adapters.
    #[must_use]
    pub(super) fn with_adapters(self, adapters: Adapters) -> Self {
        Self { adapters, ..self }
    }

    /// The model's name in answers.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// What is called so: the model itself, one of its adapters, or nothing of it.
    pub(super) fn called(&self, model: &str) -> Option<Option<Arc<ServedAdapter>>> {
        if self.names.iter().chain(&self.aliases).any(|name| name == model) {
            return Some(None);
        }
        self.adapters.named(model).map(Some)
    }

    /// The names that answers carry.
    pub(super) fn answering_names(&self) -> Vec<String> {
        let adapters = self.adapters.all();
        let adapters = adapters.iter().map(|adapter| adapter.name());
        std::iter::once(self.name()).chain(adapters).map(str::to_owned).collect()
    }

    /// Compiles what `field` asks for, on threads of its own and within a time.
    pub(super) async fn compile(
        &self,
        field: &str,
        source: GrammarSource,
    ) -> Result<Grammar, ApiError> {
        let workers = self.grammars.as_ref().ok_or_else(|| {
            ApiError::invalid(field, format!("`{field}` is not supported with this model"))
        })?;
        let busy = |busy: Busy| ApiError::rate_limited(&busy.to_string(), 1);
        let (sender, compiled) = oneshot::channel();
        let compilation = workers.submit(source, move |result| drop(sender.send(result)));
        let compilation = compilation.map_err(busy)?;
        let result = match timeout(DEADLINE, compiled).await {
            Ok(Ok(result)) => result,
            // It waited for as long.
            Ok(Err(_)) => return Err(busy(Busy)),
            Err(_) => Err(compilation.overdue().map_err(busy)?),
        };
        result.map_err(|e| ApiError::invalid(field, format!("`{field}`: {e}")))
    }

    /// Those of the texts that are special tokens here.
    pub(super) fn marks(&self, texts: &[&'static str]) -> Vec<Mark> {
        let special = |mark: &&str| self.tokenizer.get_added_vocabulary().is_special_token(mark);
        let marks = texts.iter().copied().filter(special);
        marks.filter_map(|mark| Some((self.tokenizer.token_to_id(mark)?, mark))).collect()
    }

    /// The bytes of a token: those of its text, where it is special or its bytes are unknown.
    pub(super) fn token_bytes(&self, id: u32, text: &str) -> Vec<u8> {
        let known = self.grammars.as_ref();
        let known = known.and_then(|grammars| grammars.compiler().token_bytes(id));
        known.map_or_else(|| text.as_bytes().to_vec(), <[u8]>::to_vec)
    }

    /// The bytes of a token in a text; of a special one, those of its name.
    pub(super) fn bytes_of(&self, id: u32) -> Vec<u8> {
        let known = self.grammars.as_ref();
        match known.and_then(|grammars| grammars.compiler().token_bytes(id)) {
            Some(bytes) => bytes.to_vec(),
            None => self.tokenizer.decode(&[id], false).unwrap_or_default().into_bytes(),
        }
    }

    /// Text of a field's tokens.
    pub(super) fn decode(&self, field: &str, tokens: &[u32]) -> Result<String, ApiError> {
        let vocab_size = self.engine.limits().vocab_size;
        if tokens.iter().any(|&id| id as usize >= vocab_size) {
            let message = format!("the token ids of `{field}` must lie below {vocab_size}");
            return Err(ApiError::invalid(field, message));
        }
        let text = self.tokenizer.decode(tokens, false);
        text.map_err(|e| ApiError::invalid(field, e.to_string()))
    }

    /// Texts that are not generated, as tokens: each as it stands at the beginning and behind a space.
    pub(super) fn bad_words(&self, words: &[String]) -> Result<Vec<Vec<u32>>, ApiError> {
        let field = "bad_words";
        let mut all = Vec::new();
        for word in words {
            let word = word.trim_start();
            if word.is_empty() {
                let message = "the texts of `bad_words` must not be empty";
                return Err(ApiError::invalid(field, message));
            }
            all.push(self.encode(field, word, false)?);
            all.push(self.encode(field, &format!(" {word}"), false)?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Tokens of a field's text. `special` adds what the tokenizer puts around a text; a chat template has
    /// put it there already.
    pub(super) fn encode(
        &self,
        field: &str,
        text: &str,
        special: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let limit = self.engine.limits().max_model_len;
        // Too long by any count: not worth the time to find out how long.
        if text.len() / self.longest_token > limit {
            return Err(ApiError::too_long(field, &format!("{} bytes", text.len()), limit));
        }
        let encoding = self.tokenizer.encode(text, special);
        Ok(encoding.map_err(|e| ApiError::internal(e.to_string()))?.get_ids().to_vec())
    }
}
