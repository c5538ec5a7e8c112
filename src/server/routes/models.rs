//! `/v1/models`: the names of the served model.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::server::error::ApiError;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{Model, ModelList};

pub(crate) async fn models(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let serving = state.serving()?;
    let data = serving.names.iter().map(|name| entry(&state, serving, name)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

pub(crate) async fn model(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(name) = name.map_err(|e| ApiError::status(e.status(), e.body_text()))?;
    let serving = state.serving()?;
    serving.check_model(Some(&name))?;
    Ok(Json(entry(&state, serving, &name)))
}

fn entry(state: &AppState, serving: &Serving, name: &str) -> Model {
    let max_model_len = serving.engine.limits().max_model_len;
    let (id, created) = (name.to_owned(), state.started);
    Model { id, object: "model", created, owned_by: "pleach", max_model_len }
}
