//! `/admin/draft`: another draft for a served model, compared on live traffic before it serves.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;

use crate::checkpoint::source::Source;
use crate::engine::Comparison;
use crate::server::error::ApiError;
use crate::server::request::body::Body;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{AskedModel, DraftChange, DraftStatus};

/// Tokens that two drafts are compared on where the request does not say.
const TOKENS: u64 = 4096;

fn status(serving: &Serving) -> DraftStatus {
    let comparison = serving.engine.comparison();
    serving.drafts.status(comparison.borrow().as_ref())
}

/// The model that a query names.
fn asked(
    state: &AppState,
    query: Result<Query<AskedModel>, QueryRejection>,
) -> Result<Arc<Serving>, ApiError> {
    let Query(AskedModel { model }) =
        query.map_err(|error| ApiError::status(error.status(), error.body_text()))?;
    Ok(state.asked(model.as_deref())?.serving)
}

/// Tells which draft serves, and how a comparison stands.
pub(crate) async fn draft(
    State(state): State<AppState>,
    query: Result<Query<AskedModel>, QueryRejection>,
) -> Result<Json<DraftStatus>, ApiError> {
    let serving = asked(&state, query)?;
    Ok(Json(status(&serving)))
}

/// Loads a draft and has it compared with the one that serves.
pub(crate) async fn change_draft(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<DraftStatus>), ApiError> {
    let mut body = Body::parse(bytes)?;
    let AskedModel { model } = body.read()?;
    let wanted: DraftChange = body.read()?;
    body.finish()?;
    let serving = &state.asked(model.as_deref())?.serving;
    let invalid = |error: &dyn ToString| ApiError::invalid("draft", error.to_string());
    let source: Source = wanted.draft.parse().map_err(|error| invalid(&error))?;
    let loader =
        serving.drafts.loader.clone().ok_or_else(|| {
            ApiError::invalid("draft", "the draft of this model cannot be changed")
        })?;
    let busy = || ApiError::status(StatusCode::CONFLICT, "another draft is being compared");
    let _change = serving.drafts.change.try_lock().map_err(|_| busy())?;
    let mut news = serving.engine.comparison();
    if news.borrow_and_update().as_ref().is_some_and(|it| it.outcome.is_none()) {
        return Err(busy());
    }
    // A draft that has won a comparison before serves now; this makes it known.
    status(serving);
    let (own, tokens) = (Arc::clone(serving), wanted.tokens.unwrap_or(TOKENS).max(1));
    let compare = move || loader.compare(&source, &own.engine, tokens);
    let compared = tokio::task::spawn_blocking(compare).await;
    let compared = compared.map_err(|error| ApiError::internal(error.to_string()))?;
    compared.map_err(|error| invalid(&error))?;
    // The engine may be in the middle of a step.
    if news.changed().await.is_err() {
        return Err(ApiError::unavailable("the engine has stopped"));
    }
    let answer = status(serving);
    tokio::spawn(settle(Arc::clone(serving)));
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// Gives up a comparison; the draft that serves goes on.
pub(crate) async fn keep_draft(
    State(state): State<AppState>,
    query: Result<Query<AskedModel>, QueryRejection>,
) -> Result<Json<DraftStatus>, ApiError> {
    let serving = asked(&state, query)?;
    let mut news = serving.engine.comparison();
    serving.engine.stop_comparing();
    let over = |it: &Option<Comparison>| it.as_ref().is_none_or(|it| it.outcome.is_some());
    let _ = news.wait_for(over).await;
    Ok(Json(status(&serving)))
}

/// Makes known which draft serves as soon as a comparison has ended.
async fn settle(serving: Arc<Serving>) {
    let over = |it: &Option<Comparison>| it.as_ref().is_some_and(|it| it.outcome.is_some());
    if serving.engine.comparison().wait_for(over).await.is_ok() {
        status(&serving);
    }
}
