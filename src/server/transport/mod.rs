//! Connections and their bounds, with TLS where it is asked for.

pub(crate) mod listen;
pub(crate) mod tls;
