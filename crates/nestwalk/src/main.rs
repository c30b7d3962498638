//! The `nestwalk` binary.
fn main() {}
