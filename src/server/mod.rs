//! HTTP: the OpenAI API, health and metrics over one engine.

mod access;
mod admin;
mod auth;
mod body;
mod bounds;
mod chat;
mod chat_prompt;
mod completions;
mod dialect;
mod drafts;
mod embeddings;
mod error;
mod functions;
mod generation;
mod json;
mod keys;
mod listen;
mod load;
mod logprobs;
mod message_output;
mod messages;
mod observe;
mod openapi;
mod pieces;
mod playground;
mod queue;
mod respond;
mod response_output;
mod responses;
mod running;
mod said;
mod serving;
mod spans;
mod sse;
mod state;
mod structured;
mod tls;
mod tokenize;
mod tool_calls;
mod wire;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

pub use access::SetupError;
use body::Body;
pub use error::ApiError;
pub use keys::KeysError;
pub use listen::{EngineStopped, run};
pub use load::load;
pub use serving::Serving;
pub use spans::export_spans;
pub use state::AppState;
pub use tls::TlsError;
use wire::{Model, ModelList, Status, Version};

/// All routes.
pub fn router(state: AppState) -> Router {
    let read_body = from_fn_with_state(state.clone(), observe::read_body);
    // Those that use tokens, which a key may have a bounded number of.
    let generating = Router::new()
        .route("/chat/completions", post(chat::chat_completions))
        .route("/completions", post(completions::completions))
        .route("/responses", post(responses::responses))
        .route("/messages", post(messages::messages))
        .route("/embeddings", post(embeddings::embeddings))
        .route_layer(read_body.clone())
        .route_layer(from_fn(auth::within_allowance));
    let versioned = Router::new()
        .route("/models", get(models))
        .route("/models/{*name}", get(model))
        .route("/messages/count_tokens", post(messages::count_tokens))
        .route_layer(read_body.clone())
        .merge(generating);
    // They need a key, where there are keys.
    let api = Router::new()
        .route("/apply-template", post(chat::apply_template))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route_layer(read_body.clone())
        .nest("/v1", versioned.clone())
        // For clients whose base address lacks the version.
        .merge(versioned)
        .route_layer(from_fn_with_state(state.clone(), auth::authorise));
    let admin = Router::new()
        .route(
            "/admin/draft",
            get(admin::draft).post(admin::change_draft).delete(admin::keep_draft),
        )
        .route_layer(read_body)
        .route_layer(from_fn_with_state(state.clone(), auth::authorise_admin));
    Router::new()
        .route("/", get(playground::page))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/version", get(|| async { Json(Version { version: env!("CARGO_PKG_VERSION") }) }))
        .route("/openapi.json", get(openapi::openapi))
        .merge(api)
        .merge(admin)
        .fallback(|| async { ApiError::status(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::status(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn(observe::observe))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(option_layer(state.cors().cloned()))
        .with_state(state)
}

/// Whether new requests are wanted here: like [`health`], but red as soon as a shutdown is asked for.
async fn ready(State(state): State<AppState>) -> Result<Json<Status>, ApiError> {
    state.serving()?;
    if state.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down"));
    }
    Ok(Json(Status { status: "ready" }))
}

async fn health(State(state): State<AppState>) -> Result<Json<Status>, ApiError> {
    state.serving()?;
    Ok(Json(Status { status: "ok" }))
}

async fn metrics_page(State(state): State<AppState>) -> Response {
    crate::energy::observe();
    state.metrics.run_upkeep();
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (headers, state.metrics.render()).into_response()
}

async fn models(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let serving = state.serving()?;
    let data = serving.names.iter().map(|name| entry(&state, serving, name)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

async fn model(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let serving = state.serving()?;
    serving.check_model(Some(&name))?;
    Ok(Json(entry(&state, serving, &name)))
}

fn entry(state: &AppState, serving: &Serving, name: &str) -> Model {
    let max_model_len = serving.engine.limits().max_model_len;
    let (id, created) = (name.to_owned(), state.started);
    Model { id, object: "model", created, owned_by: "pleach", max_model_len }
}
