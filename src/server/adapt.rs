//! Other vendors' requests are read as chat completions.

use serde_json::{Value, json};

use super::running::Prepared;
use super::state::Serving;
use super::{ApiError, Body, chat};

/// Makes a chat completion ready to run, streamed or not.
pub(super) fn prepare(
    serving: &Serving,
    mut request: Value,
    stream: bool,
) -> Result<Prepared, ApiError> {
    request["stream"] = json!(stream);
    chat::prepare(serving, Body::from(request))
}
