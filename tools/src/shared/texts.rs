//! The texts that the tools carry.

/// The prompts the tools carry, for making training data.
pub(crate) const PROMPTS: &str = include_str!("../../data/prompts.jsonl");
/// Text for measuring blocks.
pub(crate) const CALIBRATION: &str = include_str!("../../data/calibration.txt");
