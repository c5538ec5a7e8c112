//! What tells of the server itself: `/health`, `/ready`, `/metrics` and `/version`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::observe::energy;
use crate::server::error::ApiError;
use crate::server::state::AppState;
use crate::server::wire::{Status, Version};

/// Whether new requests are wanted here: like [`health`], but red as soon as a shutdown is asked for.
pub(crate) async fn ready(State(state): State<AppState>) -> Result<Json<Status>, ApiError> {
    state.works()?;
    if state.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down"));
    }
    Ok(Json(Status { status: "ready" }))
}

pub(crate) async fn health(State(state): State<AppState>) -> Result<Json<Status>, ApiError> {
    state.works()?;
    Ok(Json(Status { status: "ok" }))
}

pub(crate) async fn metrics(State(state): State<AppState>) -> Response {
    energy::observe();
    state.metrics.run_upkeep();
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    (headers, state.metrics.render()).into_response()
}

/// The version of this program.
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
