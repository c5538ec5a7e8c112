//! `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`: LoRA adapters that come and go while their model serves.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;

use crate::loading::AdapterLoadError;
use crate::server::adapters::ServedAdapter;
use crate::server::error::ApiError;
use crate::server::models::{Asked, Models};
use crate::server::request::body::Body;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{AdapterLoad, AdapterUnload};

/// Loads an adapter for the model that the request names, or for the main one. Says so in vLLM's words.
pub(crate) async fn load(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<String, ApiError> {
    let mut body = Body::parse(bytes)?;
    let AdapterLoad { lora_name: name, lora_path, model, load_inplace } = body.read()?;
    body.finish()?;
    let Asked { serving, adapter } = state.asked(model.as_deref())?;
    if adapter.is_some() {
        let message = "`model` is the name of an adapter; name the model that the new one adds to";
        return Err(ApiError::invalid("model", message));
    }
    let models = state.models()?;
    let exclusive = Arc::clone(&models.loading).try_lock_owned().map_err(|_| {
        let message = "another adapter is being loaded; send this again when it is there";
        ApiError::status(StatusCode::CONFLICT, message)
    })?;
    check_name(models, &serving, &name, load_inplace)?;
    let loader = serving.adapters.loader.clone().ok_or_else(|| {
        let message = format!("the adapters of `{}` cannot be changed", serving.name());
        ApiError::invalid("lora_name", message)
    })?;
    let success = format!("Success: LoRA adapter '{name}' added successfully.");
    // Goes on to its end where the client leaves.
    let loading = tokio::task::spawn_blocking(move || {
        let _exclusive = exclusive;
        let loaded = loader.load(name, lora_path.into())?;
        serving.adapters.put(ServedAdapter::new(loaded));
        Ok(())
    });
    let loaded = loading.await.map_err(|error| ApiError::internal(error.to_string()))?;
    loaded.map_err(|error: AdapterLoadError| ApiError::invalid("lora_path", error.to_string()))?;
    Ok(success)
}

/// Unloads an adapter: requests that have begun finish with it. Says so in vLLM's words.
pub(crate) async fn unload(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<String, ApiError> {
    let mut body = Body::parse(bytes)?;
    let AdapterUnload { lora_name: name, .. } = body.read()?;
    body.finish()?;
    let models = state.models()?;
    if models.all().iter().any(|serving| serving.adapters.remove(&name)) {
        tracing::info!(name, "adapter unloaded");
        return Ok(format!("Success: LoRA adapter '{name}' removed successfully."));
    }
    let message = format!("no adapter is called `{name}`; /v1/models lists those that are served");
    Err(ApiError::not_found("lora_name", message))
}

/// Whether an adapter of `serving` may have this name.
fn check_name(
    models: &Models,
    serving: &Serving,
    name: &str,
    in_place: bool,
) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::invalid("lora_name", message));
    if name.is_empty() {
        return invalid("`lora_name` must not be empty".into());
    }
    let Ok(named) = models.asked(Some(name)) else { return Ok(()) };
    if named.adapter.is_none() {
        return invalid(format!("`{name}` is the name of a model; give the adapter another one"));
    }
    if !std::ptr::eq(&*named.serving, serving) {
        let other = named.serving.name();
        return invalid(format!(
            "`{name}` is an adapter of `{other}` already; give this one another name"
        ));
    }
    if in_place {
        return Ok(());
    }
    invalid(format!(
        "the adapter `{name}` is loaded already; give this one another name, or set `load_inplace` to have it take its \
         place"
    ))
}
