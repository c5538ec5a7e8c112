//! Server-sent events.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Where the events of one answer are sent.
pub(crate) struct Events(mpsc::Sender<Result<Event, Infallible>>);

/// A response of the events that `write` sends. It is dropped, and what it runs with it, as soon as nobody listens any
/// more, though it may have nothing to send for long.
pub(crate) fn stream<F>(write: impl FnOnce(Events) -> F) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let written = write(Events(sender.clone()));
    tokio::spawn(async move {
        tokio::select! {
            () = written => {}
            () = sender.closed() => {}
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
}

impl Events {
    /// Sends an event without a name; `false` where nobody listens any more.
    pub(crate) async fn send(&self, data: &impl Serialize) -> bool {
        self.event(Event::default(), data).await
    }

    /// Sends an event with a name; `false` where nobody listens any more.
    pub(crate) async fn send_named(&self, name: &str, data: &impl Serialize) -> bool {
        self.event(Event::default().event(name), data).await
    }

    /// Ends a stream as OpenAI's older endpoints do.
    pub(crate) async fn done(&self) {
        let _ = self.0.send(Ok(Event::default().data("[DONE]"))).await;
    }

    async fn event(&self, event: Event, data: &impl Serialize) -> bool {
        let data = serde_json::to_string(data).expect("answers are JSON");
        self.0.send(Ok(event.data(data))).await.is_ok()
    }
}
