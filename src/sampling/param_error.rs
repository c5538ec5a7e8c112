//! What is wrong with a sampling parameter.

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct ParamError {
    /// Name of the parameter as in the request.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}
