//! The API's JSON as types: what comes in is read into them, what goes out is written from them, and the
//! OpenAPI document is made of them. Text of their documentation is text of that document.

mod adapter;
mod admin;
mod answer;
mod drawing;
mod dry;
mod embedding;
mod error;
mod form;
mod message;
mod message_answer;
pub(crate) mod messages;
mod model;
mod request;
mod response_answer;
pub(crate) mod response_tools;
pub(crate) mod responses;
mod tokens;
mod tool;
mod usage;
mod value;

pub(crate) use adapter::*;
pub(crate) use admin::*;
pub(crate) use answer::*;
pub(crate) use drawing::*;
pub(crate) use dry::*;
pub(crate) use embedding::*;
pub(crate) use error::*;
pub(crate) use form::*;
pub(crate) use message::*;
pub(crate) use message_answer::*;
pub(crate) use model::*;
pub(crate) use request::*;
pub(crate) use response_answer::*;
pub(crate) use tokens::*;
pub(crate) use tool::*;
pub(crate) use usage::*;
pub(crate) use value::*;
