//! `/v1/models`: the names of the served model, and what is known of it.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::checkpoint::Summary;
use crate::server::error::ApiError;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{Model, ModelList, ModelMeta};

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
    let meta = |summary: &Summary| ModelMeta {
        n_ctx_train: summary.context,
        n_embd: summary.hidden_size,
        n_vocab: summary.vocab_size,
        n_params: summary.parameters,
        size: summary.bytes,
        quantization: summary.quantization.clone(),
    };
    let (root, meta) = match &serving.description {
        Some((source, summary)) => (Some(source.clone()), Some(meta(summary))),
        None => (None, None),
    };
    let (object, owned_by, parent) = ("model", "pleach", None);
    Model { id, object, created, owned_by, max_model_len, root, parent, meta }
}
