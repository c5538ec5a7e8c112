//! Answers that another server writes.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::args::Args;
use super::conversation::OpenConversation;
use super::spoken::Spoken;
use super::work::Work;
use crate::shared::chat::{Chat, messages};
use crate::shared::endpoint::{Endpoint, Refused};
use pleach::prompts::Prompt;

/// How a conversation ended.
enum End {
    Complete,
    TooLong,
    Refused(Refused),
}

/// Lets the endpoint answer, many conversations at a time; with `spoken` it also tells of the likeliest tokens. What it
/// refuses is left out; any other failure ends the run, to be started again.
pub(super) fn answer(
    work: &mut Work<'_>,
    endpoint: &Endpoint,
    chat: &Chat,
    spoken: Option<&Spoken>,
    waiting: VecDeque<(usize, Prompt)>,
) -> Result<()> {
    let args = work.args;
    let left = args.minutes.map(|minutes| minutes * 60.0 - work.clock.seconds());
    let started = Instant::now();
    let late = move || left.is_some_and(|left| started.elapsed().as_secs_f64() > left);
    let jobs = waiting.into_iter().take_while(move |_| !late());
    endpoint.for_all(
        jobs,
        |(index, prompt)| {
            converse(endpoint, chat, spoken, args, OpenConversation::new(index, prompt, args))
        },
        |conversation| {
            let (conversation, end) = conversation?;
            match end {
                End::Complete => {}
                End::TooLong => work.skipped += 1,
                End::Refused(error) => eprintln!("prompt {}: {error}", conversation.prompt.id),
            }
            let tokens = conversation.finished.iter().map(|one| one.example.response_tokens.len());
            work.tokens += tokens.sum::<usize>();
            work.writer.finish(conversation.index, conversation.finished)?;
            work.show()
        },
    )
}

fn converse(
    endpoint: &Endpoint,
    chat: &Chat,
    spoken: Option<&Spoken>,
    args: &Args,
    mut conversation: OpenConversation,
) -> Result<(OpenConversation, End)> {
    while !conversation.is_done() {
        let (turns, seen) = conversation.begin(chat)?;
        if seen.len() > args.max_prompt_tokens {
            return Ok((conversation, End::TooLong));
        }
        let mut request = json!({
            "messages": messages(&turns, &conversation.answers),
            "max_tokens": args.max_tokens,
            "temperature": conversation.temperature,
            "seed": args.seed.wrapping_add(conversation.index as u64),
        });
        if spoken.is_some() {
            request["logprobs"] = json!(true);
            request["top_logprobs"] = json!(args.top_logprobs);
            request["return_tokens_as_token_ids"] = json!(true);
        }
        let choice = match endpoint.choice("chat/completions", request) {
            Ok(choice) => choice,
            Err(error) => {
                let refused = error.downcast::<Refused>()?;
                return Ok((conversation, End::Refused(refused)));
            }
        };
        let Some(text) = choice["message"]["content"].as_str() else {
            // Some servers answer with reasoning or calls alone.
            let refused = Refused("an answer without content".into());
            return Ok((conversation, End::Refused(refused)));
        };
        let stopped = choice["finish_reason"] == "stop";
        if let Some(spoken) = spoken {
            (conversation.tokens, conversation.top) = spoken.tokens(&choice)?.into_iter().unzip();
            if stopped && !conversation.tokens.last().is_some_and(|id| chat.ends.contains(id)) {
                // Most servers do not tell of the token that ends an answer: it was certain.
                conversation.tokens.extend(chat.ends.first());
                conversation.top.extend(chat.ends.first().map(|id| vec![(*id, 0.0)]));
            }
        } else {
            conversation.tokens =
                if stopped { chat.encode_answer(text)? } else { chat.encode_text(text, false)? };
        }
        let reason = if stopped { "stop" } else { "length" };
        let (text, reason) = conversation.select(chat, text.to_owned(), reason)?;
        conversation.finish(text, reason);
    }
    Ok((conversation, End::Complete))
}
