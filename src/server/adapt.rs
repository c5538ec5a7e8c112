//! Other vendors' shapes are put on top of a chat completion: its answer and its chunks, read back.

use axum::body::{BodyDataStream, to_bytes};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::convert::Infallible;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::respond::{Prepared, PromptTokens, respond};
use super::state::Serving;
use super::{ApiError, AppState, Body, chat};

/// Makes a chat completion ready to run, streamed or not.
pub(super) fn prepare(
    serving: &Serving,
    mut request: Value,
    stream: bool,
) -> Result<Prepared, ApiError> {
    if stream {
        request["stream"] = json!(true);
        request["stream_options"] = json!({"include_usage": true});
    }
    chat::prepare(serving, Body::from(request))
}

/// A whole answer.
pub(super) async fn whole(state: &AppState, request: Prepared) -> Result<Value, ApiError> {
    let answer = respond(state, request).await?;
    let bytes = to_bytes(answer.into_body(), usize::MAX).await;
    let answer = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    answer.ok_or_else(|| ApiError::internal("the answer cannot be read back"))
}

/// A streamed answer; dropping it cancels the request.
pub(super) async fn streamed(state: &AppState, request: Prepared) -> Result<Chunks, ApiError> {
    let answer = respond(state, request).await?;
    let prompt_tokens = answer.extensions().get().map_or(0, |PromptTokens(count)| *count);
    let body = answer.into_body().into_data_stream();
    Ok(Chunks { body, text: Vec::new(), prompt_tokens })
}

/// Chunks of a chat completion.
pub(super) struct Chunks {
    body: BodyDataStream,
    text: Vec<u8>,
    /// Tokens of the prompt.
    pub(super) prompt_tokens: usize,
}

impl Chunks {
    /// The next chunk, which may be an error; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                match event.strip_prefix(b"data: ").map(serde_json::from_slice) {
                    Some(Ok(chunk)) => return Some(chunk),
                    Some(Err(_)) => return None, // [DONE]
                    None => continue,            // a comment that keeps the connection alive
                }
            }
            match self.body.next().await {
                Some(Ok(more)) => self.text.extend_from_slice(&more),
                // An end without [DONE] is none.
                _ => {
                    let error = ApiError::internal("the answer broke off").body();
                    return Some(json!(error));
                }
            }
        }
    }
}

/// Named events, sent as they come.
pub(super) struct Events(mpsc::Sender<Result<Event, Infallible>>);

impl Events {
    /// An event named by its `type`; `false` where nobody listens any more.
    pub(super) async fn send(&self, data: &Value) -> bool {
        let name = data["type"].as_str().unwrap_or_default();
        self.0.send(Ok(Event::default().event(name).data(data.to_string()))).await.is_ok()
    }
}

/// A channel of events and the response that carries them.
pub(super) fn events() -> (Events, Response) {
    let (sender, receiver) = mpsc::channel(64);
    let stream = Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default());
    (Events(sender), stream.into_response())
}
