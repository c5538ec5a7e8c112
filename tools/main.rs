//! pleach.

fn main() {}
