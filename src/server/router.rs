//! Which handler answers which path, and what requests pass on their way to it.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

use super::error::ApiError;
use super::layers::{auth, dialect, observe, read_body};
use super::routes::{
    adapters, admin, chat, completions, embeddings, health, messages, models, openapi, playground,
    responses, tokenize,
};
use super::state::AppState;

/// All routes, but /metrics where they have a listener of their own.
pub fn router(state: AppState) -> Router {
    let read_body = from_fn_with_state(state.clone(), read_body::read_body);
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
        .route("/models", get(models::models))
        .route("/models/{*name}", get(models::model))
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
        .route_layer(read_body.clone())
        .route_layer(from_fn_with_state(state.clone(), auth::authorise_admin));
    let adapters = Router::new()
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route_layer(read_body)
        .route_layer(from_fn_with_state(state.clone(), auth::authorise_adapters));
    let cors = state.cors().cloned();
    let metrics = if state.metrics_apart() { Router::new() } else { metrics() };
    let routes = probes()
        .merge(metrics)
        .route("/", get(playground::page))
        .route("/version", get(health::version))
        .route("/openapi.json", get(openapi::openapi))
        .merge(api)
        .merge(admin)
        .merge(adapters);
    observed(routes).layer(option_layer(cors)).with_state(state)
}

/// The routes of those who watch the server.
pub(super) fn watchers(state: AppState) -> Router {
    observed(probes().merge(metrics())).with_state(state)
}

fn metrics() -> Router<AppState> {
    Router::new().route("/metrics", get(health::metrics))
}

fn probes() -> Router<AppState> {
    Router::new().route("/health", get(health::health)).route("/ready", get(health::ready))
}

/// Routes whose requests are counted, logged and always answered.
fn observed(routes: Router<AppState>) -> Router<AppState> {
    routes
        .fallback(|| async { ApiError::status(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::status(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn(dialect::errors))
        .layer(from_fn(observe::observe))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
}
