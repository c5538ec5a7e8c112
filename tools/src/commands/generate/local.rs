//! Answers that the model writes here.

use std::collections::VecDeque;

use anyhow::Result;
use pleach::engine::{EngineConfig, FinishReason, OfflineBatch, Request};
use pleach::kv_cache::blocks_for;
use pleach::prompts::Prompt;
use pleach::sampling::SamplingParams;

use super::conversation::OpenConversation;
use super::work::Work;
use crate::shared::models::{Loaded, Running};

/// Answers that end sooner than this when the time is up are not worth keeping.
const SHORTEST_CUT: usize = 16;

/// An engine for `batch` texts of up to `longest` tokens at a time, without speculation, in so much of a device's memory.
pub(crate) fn batch_engine(
    loaded: Loaded,
    [batch, longest]: [usize; 2],
    gpu_memory_utilization: f64,
) -> Result<Running> {
    let max_model_len = longest.min(loaded.config().max_position_embeddings);
    loaded.start(EngineConfig {
        max_num_seqs: batch,
        max_model_len: Some(max_model_len),
        num_blocks: Some(batch * blocks_for(max_model_len)),
        gpu_memory_utilization,
        num_speculative_tokens: 0,
        ..EngineConfig::default()
    })
}

/// Lets the model that is loaded answer.
pub(super) fn answer(
    work: &mut Work<'_>,
    loaded: Loaded,
    mut waiting: VecDeque<(usize, Prompt)>,
) -> Result<()> {
    let args = work.args;
    let longest = args.max_prompt_tokens + args.max_tokens + 1;
    let share = args.device.gpu_memory_utilization;
    let Running { mut engine, chat, .. } = batch_engine(loaded, [args.batch, longest], share)?;
    let mut running = OfflineBatch::default();
    let mut again: Vec<OpenConversation> = Vec::new();
    loop {
        let late = work.is_late();
        while !late && running.len() < args.batch {
            let next = again.pop().or_else(|| {
                let (index, prompt) = waiting.pop_front()?;
                Some(OpenConversation::new(index, prompt, args))
            });
            let Some(mut next) = next else { break };
            let (_, seen) = next.begin(&chat)?;
            if seen.len() > args.max_prompt_tokens.min(engine.limits().max_model_len - 1) {
                work.skipped += 1;
                work.writer.finish(next.index, next.finished)?;
                continue;
            }
            let request = Request {
                params: SamplingParams {
                    temperature: next.temperature,
                    seed: Some(args.seed.wrapping_add(next.index as u64)),
                    ..SamplingParams::default()
                },
                top_logprobs: (args.top_logprobs > 0).then_some(args.top_logprobs),
                ..Request::greedy(seen, args.max_tokens)
            };
            running.submit(&mut engine, request, next).map_err(|(error, _)| error)?;
        }
        if late || running.is_empty() {
            break;
        }
        for (mut answer, said) in running.step(&mut engine) {
            let reason = match said.reason {
                FinishReason::Eos
                | FinishReason::StopToken(_)
                | FinishReason::StopString
                | FinishReason::Grammar => "stop",
                FinishReason::Length | FinishReason::Overdue => "length",
                FinishReason::Error(reason) | FinishReason::GrammarError(reason) => {
                    eprintln!("prompt {}: {reason}", answer.prompt.id);
                    work.writer.finish(answer.index, answer.finished)?;
                    continue;
                }
            };
            answer.said(said.tokens);
            let text = chat.decode(&answer.tokens)?;
            let (text, reason) = answer.select(&chat, text, reason)?;
            answer.finish(text, reason);
            if answer.is_done() {
                work.writer.finish(answer.index, answer.finished)?;
            } else {
                again.push(answer);
            }
        }
        work.tokens = engine.stats().rounds.generated_tokens as usize;
        work.show()?;
    }
    // An answer that was cut off cannot be checked.
    let worth = |answer: &OpenConversation| {
        answer.tokens.len() >= SHORTEST_CUT && answer.prompt.reference.is_none()
    };
    let unfinished = running.into_unfinished().map(|(mut answer, tokens)| {
        answer.said(tokens);
        answer
    });
    for mut answer in unfinished.chain(again) {
        if worth(&answer) {
            let text = chat.decode(&answer.tokens)?;
            answer.finish(text, "length");
        }
        work.writer.finish(answer.index, answer.finished)?;
    }
    Ok(())
}
