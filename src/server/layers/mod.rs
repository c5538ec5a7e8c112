//! What requests pass on their way to a handler.

pub(crate) mod auth;
pub(crate) mod dialect;
pub(crate) mod observe;
pub(crate) mod read_body;
