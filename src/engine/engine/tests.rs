mod drafting;
mod ends;
mod invariance;
mod memory;

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::test_model::{EOS, Fault, TestModel, VOCAB};
use super::super::{
    FinishReason, Outcome, PromptToken, ProposerCounts, Readout, TokenOut, TokenSource,
};
use super::*;
use crate::model::{OutOfMemory, Rows};
use crate::sampling::{Dry, SamplingParams};
use crate::speculation::Proposer;
use crate::text::StoppingText;

fn config() -> EngineConfig {
    EngineConfig {
        adaptive: false,
        ngram: false,
        num_speculative_tokens: 4,
        num_blocks: Some(64),
        ..Default::default()
    }
}

fn engine(config: &EngineConfig, draft: Option<TestModel>) -> Engine {
    let blocks = config.num_blocks.unwrap();
    let draft = draft.map(|draft| Box::new(draft) as Box<dyn Forward>);
    Engine::with_models(Box::new(TestModel::new(blocks)), draft, config.clone()).unwrap()
}

struct Output {
    tokens: Vec<TokenOut>,
    reason: FinishReason,
    stats: crate::engine::SequenceStats,
    /// What was read off the prompt.
    read: Option<Event>,
}

impl Output {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Runs all requests to their end and checks that nothing is left behind.
fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Output> {
    let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let mut tokens: HashMap<RequestId, Vec<TokenOut>> = HashMap::new();
    let (mut ends, mut reads) = (HashMap::new(), HashMap::new());
    while engine.has_work() {
        let events = engine.step();
        assert!(!events.is_empty() || engine.has_work());
        for (id, event) in events {
            assert!(!ends.contains_key(&id), "news after the end");
            match event {
                read @ (Event::Prompt(_) | Event::Embedding(_)) => {
                    assert!(!tokens.contains_key(&id) && reads.insert(id, read).is_none());
                }
                Event::Tokens(new) => tokens.entry(id).or_default().extend(new),
                Event::Finished { reason, stats } => {
                    ends.insert(id, (reason, stats));
                }
            }
        }
    }
    assert_eq!(engine.cache_blocks().0, 0, "blocks leaked");
    let stats = engine.stats();
    let sources = stats.rounds.accepted_tokens
        + stats.rounds.recovered_tokens
        + stats.rounds.bonus_tokens
        + stats.rounds.target_tokens;
    assert_eq!(sources, stats.rounds.generated_tokens);
    assert!(stats.rounds.accepted_tokens <= stats.rounds.draft_tokens);
    let by_proposer =
        |count: fn(&ProposerCounts) -> u64| stats.rounds.proposers.iter().map(count).sum::<u64>();
    assert_eq!(stats.rounds.draft_tokens, by_proposer(|counts| counts.draft_tokens));
    assert_eq!(stats.rounds.accepted_tokens, by_proposer(|counts| counts.accepted_tokens));
    ids.iter()
        .map(|id| {
            let (reason, stats) = ends.remove(id).unwrap();
            let tokens = tokens.remove(id).unwrap_or_default();
            assert_eq!(stats.rounds.generated_tokens, tokens.len() as u64);
            Output { tokens, reason, stats, read: reads.remove(id) }
        })
        .collect()
}

fn ids(outputs: &[Output]) -> Vec<(Vec<u32>, FinishReason)> {
    outputs.iter().map(|output| (output.ids(), output.reason.clone())).collect()
}

fn requests() -> Vec<Request> {
    (0..8u32)
        .map(|n| {
            let prompt = (0..3 + n * 7).map(|i| 2 + (i * n + i) % 40).collect();
            let mut request = Request::greedy(prompt, 40);
            request.ignore_eos = n % 2 == 0;
            if n == 3 {
                request.params.repetition_penalty = 1.3;
                request.params.frequency_penalty = 0.7;
            }
            let restrictions = &mut request.params.restrictions;
            match n {
                4 => restrictions.allowed = Some((3..20).collect()),
                5 => restrictions.min_tokens = 8,
                6 => restrictions.bad_words = (2..24).map(|id| vec![id, id + 24]).collect(),
                7 => restrictions.bad_words = (2..40).map(|id| vec![id]).collect(),
                _ => {}
            }
            request
        })
        .collect()
}

/// Each request on its own, without speculation: what every other way of running must repeat.
fn reference(requests: &[Request]) -> Vec<(Vec<u32>, FinishReason)> {
    requests
        .iter()
        .flat_map(|r| ids(&run(&mut engine(&config(), None), std::slice::from_ref(r))))
        .collect()
}
