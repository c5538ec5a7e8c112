//! Passes that do not fit into memory.

use super::*;
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
    let target = Box::new(Narrow { model: TestModel::new(64), refuses });
    let draft = Box::new(TestModel::draft(64, 40)) as Box<dyn Forward>;
    Engine::with_models(target, Some(draft), config()).unwrap()
}

#[test]
fn smaller_passes_say_the_same() {
    let requests = requests();
    let expected = reference(&requests);
    for most in [40, 7, 1] {
        let mut engine = narrow(move |rows| rows.len() > most);
        assert_eq!(ids(&run(&mut engine, &requests)), expected, "{most} rows");
        assert!(engine.stats().preemptions > 0);
    }
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
