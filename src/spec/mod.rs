//! Speculation: proposing draft tokens and deciding which of them stand.
