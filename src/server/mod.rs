//! HTTP: the OpenAI API, health and metrics over the engines of the served models.
//!
//! A request comes through `transport` and `layers` to its handler in `routes`; `request` reads it, `generate` lets the
//! engine work on it, `answer` writes what comes of it; `wire` has the JSON of both ways as types.

mod access;
mod adapters;
mod answer;
mod bounds;
mod drafts;
mod error;
mod generate;
mod keys;
mod layers;
mod load;
mod models;
mod queue;
mod request;
mod router;
mod routes;
mod serving;
mod state;
mod transport;
mod wire;

pub use access::SetupError;
pub use error::ApiError;
pub use keys::KeysError;
pub use load::load;
pub use models::{Asked, Models};
pub use router::router;
pub use serving::Serving;
pub use state::AppState;
pub use transport::listen::{EngineStopped, run, watch};
pub use transport::tls::TlsError;
