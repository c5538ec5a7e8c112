//! Requests as they are read: JSON, names, forms of output, functions.

mod arguments;
pub(crate) mod body;
pub(crate) mod dialect;
pub(crate) mod functions;
pub(crate) mod json;
pub(crate) mod lark;
pub(crate) mod structured;
pub(crate) mod thinking;
