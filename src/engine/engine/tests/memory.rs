//! Passes that do not fit into memory.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::*;
use crate::grammar::{Grammar, GrammarCompiler, GrammarSource};
use crate::model::ModelConfig;

/// A model whose passes do not fit where `refuses` says so of their rows.
struct Narrow<F> {
    model: TestModel,
    refuses: F,
}

impl<F: FnMut(&Rows) -> bool + Send> Forward for Narrow<F> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn head_rows(&self) -> usize {
        self.model.head_rows()
    }

    fn draft_vocab(&self) -> Option<&Arc<[u32]>> {
        self.model.draft_vocab()
    }

    fn hidden_state(&self, row: usize, out: &mut [f32]) {
        self.model.hidden_state(row, out);
    }

    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory> {
        if (self.refuses)(rows) {
            return Err(OutOfMemory("the test's memory is full".into()));
        }
        self.model.forward(rows)
    }
}

fn narrow(refuses: impl FnMut(&Rows) -> bool + Send + 'static) -> Engine {
    narrow_with(config(), refuses)
}

fn narrow_with(
    config: EngineConfig,
    refuses: impl FnMut(&Rows) -> bool + Send + 'static,
) -> Engine {
    let target = Box::new(Narrow { model: TestModel::new(64), refuses });
    let draft = Box::new(TestModel::draft(64, 40)) as Box<dyn Forward>;
    Engine::with_models(target, Some(draft), config).unwrap()
}

/// Refuses every pass of more than one row, and fails the test where there is no end of passes.
fn one_row_at_a_time() -> impl FnMut(&Rows) -> bool + Send + 'static {
    let mut passes = 0;
    move |rows| {
        passes += 1;
        assert!(passes < 1000, "no end in sight");
        rows.len() > 1
    }
}

/// Texts that an expression matches, over a token for each of 47 characters from `!` on.
fn grammar(expression: &str) -> Grammar {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let end = [("<e>".to_owned(), EOS)];
    let letters = alphabet.iter().map(char::to_string).zip(1..VOCAB as u32);
    let bpe =
        BPE::builder().vocab_and_merges(end.into_iter().chain(letters).collect::<Vocab>(), vec![]);
    let mut tokenizer = Tokenizer::new(bpe.build().unwrap());
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, false)));
    tokenizer.add_special_tokens([AddedToken::from("<e>", true)]).unwrap();
    let compiler = GrammarCompiler::new(&tokenizer, VOCAB, &[EOS]).unwrap();
    compiler.compile(&GrammarSource::Regex(expression.into())).unwrap()
}

#[test]
fn smaller_passes_say_the_same() {
    let requests = requests();
    let expected = reference(&requests);
    for most in [40, 7, 1] {
        let mut engine = narrow(move |rows| rows.len() > most);
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "{most} rows");
    }
}

/// A longer prompt than passes go well before larger ones are tried, which nothing but its sequence keeps.
#[test]
fn what_was_computed_before_stays() {
    let prompt: Vec<u32> = (0..200).map(|i| 2 + i * i % 41).collect();
    let uncached = EngineConfig { prefix_caching: false, ..config() };
    let plain = Request::greedy(prompt.clone(), 12);
    let read = Request { readout: Readout::Logprobs(1), ..plain.clone() };
    for (config, request) in [(uncached, plain), (config(), read)] {
        let requests = [request];
        let [expected] = &run(&mut engine(&config, None), &requests)[..] else { panic!("one") };
        let mut engine = narrow_with(config, one_row_at_a_time());
        let [output] = &run(&mut engine, &requests)[..] else { panic!("one") };
        assert_eq!((output.ids(), &output.read), (expected.ids(), &expected.read));
        assert_eq!((output.stats.preemptions, engine.stats().preemptions), (0, 0));
    }
}

/// Draft tokens of a step that is taken back are taken back of the grammar too, where the next steps draft others or none.
#[test]
fn a_grammar_is_followed_from_where_it_was() {
    let of = |expression: &str, first| Request {
        grammar: Some(grammar(expression)),
        ..Request::greedy(vec![first, 9, 4], 40)
    };
    let requests =
        [of("[0-9A-O]{17}", 2), of("([0-7]{1,3}[A-F])+", 3), of("[!-/]([0-9][A-O]?){6}", 5)];
    let expected = reference(&requests);
    for every in 2..6 {
        for most in 1..16 {
            let mut passes = 0;
            let mut engine = narrow(move |rows| {
                passes += 1;
                rows.len() > most && passes % every == 0
            });
            assert_eq!(ids(&run(&mut engine, &requests)), expected, "{every} {most}");
        }
    }
}

/// Memory that is missing for a moment ends nobody, and for longer it ends them one by one.
#[test]
fn passes_of_one_row_are_tried_again() {
    let requests = requests();
    let expected = reference(&requests);
    for (failing, ended) in [(7, 0), (8, 1), (15, 1), (16, 2)] {
        let mut failed = 0;
        let mut engine = narrow(move |rows| {
            let fails = failed < failing;
            failed += usize::from(fails && rows.len() == 1);
            fails
        });
        let outputs = ids(&run(&mut engine, &requests));
        let differing =
            outputs.iter().zip(&expected).filter(|(output, expected)| output != expected);
        let differing: Vec<_> = differing.collect();
        assert_eq!(differing.len(), ended, "{failing}: {differing:?}");
        for ((_, reason), _) in differing {
            assert!(matches!(reason, FinishReason::Error(_)), "{reason:?}");
        }
    }
}

/// Sequences whose first pass is taken back are counted once.
#[test]
fn a_request_begins_once() {
    let requests = requests();
    let mut engine = narrow(|rows| rows.len() > 7);
    let outputs = run(&mut engine, &requests);
    let prompts: usize = requests.iter().map(|request| request.prompt.len()).sum();
    assert_eq!(engine.stats().prefix_cache_queries, prompts as u64);
    let cached: usize = outputs.iter().map(|output| output.stats.cached_tokens).sum();
    assert_eq!(engine.stats().prefix_cache_hits, cached as u64);
}

/// Blocks that a pass was to fill are found by nobody, whichever pass fails.
#[test]
fn what_was_not_computed_is_not_shared() {
    let prompt: Vec<u32> = (0..70).map(|i| 2 + i % 40).collect();
    let requests: Vec<Request> = (0..4).map(|_| Request::greedy(prompt.clone(), 12)).collect();
    let expected = reference(&requests);
    for failing in 0..12 {
        let mut passes = 0;
        let mut engine = narrow(move |_| {
            passes += 1;
            passes == failing + 1
        });
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "pass {failing}");
    }
}

#[test]
fn a_sequence_that_fits_no_pass_ends_alone() {
    let mut requests = requests();
    let expected = reference(&requests);
    // No other prompt begins with 3.
    requests.insert(3, Request::greedy(vec![3, 4, 7], 40));
    let first = |rows: &Rows| rows.tokens.iter().zip(&rows.positions).any(|at| at == (&3, &0));
    let mut engine = narrow(first);
    let outputs = ids(&run(&mut engine, &requests));
    let (failed, others): (Vec<_>, Vec<_>) =
        outputs.into_iter().partition(|(_, reason)| matches!(reason, FinishReason::Error(_)));
    let [(tokens, FinishReason::Error(error))] = &failed[..] else { panic!("{failed:?}") };
    assert!(tokens.is_empty() && error.contains("memory is full"), "{error}");
    assert_eq!(others, expected);
}

/// A draft model without memory is left out.
#[test]
fn drafting_may_run_out_of_memory() {
    let requests = requests();
    let target = Box::new(TestModel::new(64));
    let mut passes = 0;
    let refuses = move |_: &Rows| {
        passes += 1;
        passes > 5
    };
    let draft = Box::new(Narrow { model: TestModel::draft(64, 0), refuses });
    let mut engine = Engine::with_models(target, Some(draft), config()).unwrap();
    assert_eq!(ids(&run(&mut engine, &requests)), reference(&requests));
    assert_eq!(engine.stats().draft_failures, 1);
    assert!(!engine.has_draft_model());
}
