//! `/v1/models`: the names of the served models, their adapters, and what is known of them.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use crate::checkpoint::Summary;
use crate::server::adapters::ServedAdapter;
use crate::server::error::ApiError;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{Model, ModelList, ModelMeta};

pub(crate) async fn models(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let mut data = Vec::new();
    for serving in state.models()?.all() {
        data.extend(serving.names.iter().map(|name| entry(&state, serving, name, None)));
        let adapters = serving.adapters.all();
        data.extend(adapters.iter().map(|it| entry(&state, serving, it.name(), Some(&**it))));
    }
    Ok(Json(ModelList { object: "list", data }))
}

pub(crate) async fn model(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(name) = name.map_err(|e| ApiError::status(e.status(), e.body_text()))?;
    let asked = state.asked(Some(&name))?;
    Ok(Json(entry(&state, &asked.serving, &name, asked.adapter.as_deref())))
}

/// The model, or one of its adapters, under one of its names.
fn entry(
    state: &AppState,
    serving: &Serving,
    name: &str,
    adapter: Option<&ServedAdapter>,
) -> Model {
    let max_model_len = serving.engine.limits().max_model_len;
    let created = adapter.map_or(state.started, |adapter| adapter.since);
    let id = name.to_owned();
    let meta = |summary: &Summary| ModelMeta {
        n_ctx_train: summary.context,
        n_embd: summary.hidden_size,
        n_vocab: summary.vocab_size,
        n_params: summary.parameters,
        size: summary.bytes,
        quantization: summary.quantization.clone(),
    };
    let (root, parent, meta) = match (adapter, &serving.description) {
        (Some(adapter), _) => (Some(adapter.folder()), Some(serving.name().to_owned()), None),
        (None, Some((source, summary))) => (Some(source.clone()), None, Some(meta(summary))),
        (None, None) => (None, None, None),
    };
    let (object, owned_by) = ("model", "pleach");
    Model { id, object, created, owned_by, max_model_len, root, parent, meta }
}
