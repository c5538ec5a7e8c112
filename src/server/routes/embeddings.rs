//! `POST /v1/embeddings`: the served model's own hidden states.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::engine::{Event, FinishReason, Readout, Request};
use crate::server::bounds::INPUTS;
use crate::server::error::ApiError;
use crate::server::keys::{self, Metered};
use crate::server::models::Asked;
use crate::server::request::body::Body;
use crate::server::request::dialect::Dialect;
use crate::server::state::AppState;
use crate::server::wire::{
    Embedding, EmbeddingList, EmbeddingNumbers, EmbeddingUsage, Embeddings, EncodingFormat,
    OnePrompt,
};

/// Inputs of one request that run at a time.
const AT_A_TIME: usize = 8;

pub(crate) async fn embeddings(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<EmbeddingList>, ApiError> {
    let (asked, prepared) = state.prepare(bytes, prepare).await?;
    let Prepared { requests, encoding_format, dimensions } = prepared;
    let serving = &asked.serving;
    let at_a_time = AT_A_TIME.min(serving.queue.room()).max(1);
    let _place = serving.queue.enter(requests.len().min(at_a_time), "input")?;
    let prompt_tokens = requests.iter().map(|request| request.prompt.len()).sum();
    let mut data = Vec::with_capacity(requests.len());
    let cache_salt = keys::cache_salt(None);
    for requests in requests.chunks(at_a_time) {
        let mut readers = Vec::new();
        for request in requests {
            let (length, request) =
                (request.prompt.len(), Request { cache_salt, ..request.clone() });
            readers.push(Metered::new(length, serving.engine.submit(request).await?));
        }
        for reader in readers {
            let values = read(reader, dimensions).await?;
            data.push(Embedding {
                object: "embedding",
                index: data.len(),
                embedding: match encoding_format {
                    Some(EncodingFormat::Base64) => EmbeddingNumbers::Base64(base64(&values)),
                    Some(EncodingFormat::Float) | None => EmbeddingNumbers::Float(values),
                },
            });
        }
    }
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens };
    let model = asked.name().to_owned();
    Ok(Json(EmbeddingList { object: "list", data, model, usage }))
}

/// The requests for the hidden states of all inputs.
struct Prepared {
    requests: Vec<Request>,
    /// How the hidden states are to be written.
    encoding_format: Option<EncodingFormat>,
    /// How many numbers of each.
    dimensions: usize,
}

fn prepare(asked: &Asked, mut body: Body) -> Result<Prepared, ApiError> {
    let wanted: Embeddings = body.read()?;
    body.finish()?;
    let serving = &asked.serving;
    let adapter = asked.adapter.as_ref().map(|adapter| adapter.weights());
    let all = serving.engine.limits().hidden_size;
    let dimensions = wanted.dimensions.unwrap_or(all);
    if !(1..=all).contains(&dimensions) {
        let message =
            format!("`dimensions` must be 1 to {all}, what an embedding of this model has");
        return Err(ApiError::invalid("dimensions", message));
    }
    let inputs = wanted.input.into_list();
    if inputs.len() > INPUTS {
        let message = format!("`input` takes 1 to {INPUTS} texts");
        return Err(ApiError::invalid("input", message));
    }
    let mut requests = Vec::new();
    for input in inputs {
        let prompt = match input {
            OnePrompt::Text(text) => serving.encode("input", &text, true)?,
            OnePrompt::Ids(ids) => ids,
        };
        let readout = Readout::Embedding;
        let adapter = adapter.clone();
        let request = Request { readout, adapter, ..Request::greedy(prompt, 1) };
        let valid = request.validate(serving.engine.limits());
        valid.map_err(|fault| Dialect::EMBEDDINGS.fault(&fault))?;
        requests.push(request);
    }
    Ok(Prepared { requests, encoding_format: wanted.encoding_format, dimensions })
}

/// The first numbers of an embedding, of length 1.
async fn read(mut events: Metered, dimensions: usize) -> Result<Vec<f32>, ApiError> {
    let mut embedding = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Embedding(values) => embedding = Some(values),
            Event::Finished { reason: FinishReason::Error(reason), .. } => {
                return Err(ApiError::internal(reason));
            }
            Event::Finished { reason: FinishReason::Overdue, .. } => {
                return Err(ApiError::overdue());
            }
            _ => {}
        }
    }
    let mut values: Vec<f32> =
        embedding.ok_or_else(|| ApiError::internal("the engine has stopped"))?;
    values.truncate(dimensions);
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length.is_nan() || length.is_infinite() {
        return Err(ApiError::internal("the model gives no finite embedding"));
    }
    values.iter_mut().for_each(|value| *value /= length.max(f32::MIN_POSITIVE));
    Ok(values)
}

fn base64(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}
