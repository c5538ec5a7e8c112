//! The commands, a module each.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod importance;
pub(crate) mod merge;
pub(crate) mod pack;
pub(crate) mod prune;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod search;
pub(crate) mod top;
pub(crate) mod train;
