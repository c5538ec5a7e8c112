//! What the commands share.

pub(crate) mod attach;
pub(crate) mod calibration;
pub(crate) mod chart;
pub(crate) mod chat;
pub(crate) mod endpoint;
pub(crate) mod journal;
pub(crate) mod lines;
pub(crate) mod manifest;
pub(crate) mod measure_args;
pub(crate) mod model_args;
pub(crate) mod model_folder;
pub(crate) mod models;
pub(crate) mod place;
pub(crate) mod progress;
mod ridge;
pub(crate) mod states;
pub(crate) mod texts;
