//! HTTP: the OpenAI API, health and metrics over one engine.

mod adapt;
mod body;
mod chat;
mod completions;
mod error;
mod generation;
mod guard;
mod keys;
mod listen;
mod load;
mod logprobs;
mod messages;
mod playground;
mod queue;
mod respond;
mod responses;
mod spans;
mod state;
mod structured;
mod tls;
mod tokenize;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

use body::Body;
pub use error::ApiError;
pub use keys::KeysError;
pub use listen::{ConnectionLimits, EngineStopped, run};
pub use load::{LoadError, Models, load};
pub use spans::export_spans;
pub use state::{AppState, Serving, SetupError};
pub use tls::TlsError;

use crate::engine::SequenceStats;

/// All routes.
pub fn router(state: AppState) -> Router {
    // Those that cost something: they need a key, where there are keys.
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/messages", post(messages::messages))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route_layer(from_fn_with_state(state.clone(), guard::read_body))
        .route_layer(from_fn_with_state(state.clone(), keys::authorise));
    Router::new()
        .route("/", get(playground::page))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/version", get(|| async { Json(json!({"version": env!("CARGO_PKG_VERSION")})) }))
        .merge(api)
        .fallback(|| async { ApiError::status(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::status(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(guard::panicked))
        .layer(from_fn(guard::observe))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(option_layer(state.cors().cloned()))
        .with_state(state)
}

/// Whether new requests are wanted here: like [`health`], but red as soon as a shutdown is asked for.
async fn ready(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    state.serving()?;
    if state.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down"));
    }
    Ok(Json(json!({"status": "ready"})))
}

async fn health(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    state.serving()?;
    Ok(Json(json!({"status": "ok"})))
}

async fn metrics_page(State(state): State<AppState>) -> Response {
    crate::energy::observe();
    state.metrics.run_upkeep();
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (headers, state.metrics.render()).into_response()
}

async fn models(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let entry = entry(&state, &state.serving()?.name);
    Ok(Json(json!({"object": "list", "data": [entry]})))
}

async fn model(
    State(state): State<AppState>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Json<Value>, ApiError> {
    if name == state.serving()?.name {
        Ok(Json(entry(&state, &name)))
    } else {
        Err(ApiError::not_found("model", format!("the model `{name}` does not exist")))
    }
}

fn entry(state: &AppState, name: &str) -> Value {
    json!({"id": name, "object": "model", "created": state.started, "owned_by": "pleach"})
}

/// The `usage` object of choices that share their prompts.
fn usage(prompt_tokens: usize, choices: &[SequenceStats]) -> Value {
    let sum = |of: fn(&SequenceStats) -> u64| choices.iter().map(of).sum::<u64>();
    let completion: usize = choices.iter().map(|s| s.generated_tokens).sum();
    // The choices of a prompt come one after the other, and all but the first find what that one computed.
    let per_prompt = choices.iter().map(|s| s.prompt_tokens).sum::<usize>() / prompt_tokens.max(1);
    let first = choices.iter().step_by(per_prompt.max(1));
    json!({
        "prompt_tokens": prompt_tokens,
        "prompt_tokens_details": {
            "cached_tokens": first.map(|s| s.cached_tokens).sum::<usize>(),
        },
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "pleach": {
            "drafts": sum(|s| s.drafts),
            "draft_tokens": sum(|s| s.draft_tokens),
            "accepted_tokens": sum(|s| s.accepted_tokens),
        },
    })
}
