//! The tools of the Z-stack engine.

fn main() {}
