//! The handlers, by path.

pub(crate) mod adapters;
pub(crate) mod admin;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod openapi;
pub(crate) mod playground;
pub(crate) mod responses;
pub(crate) mod tokenize;
