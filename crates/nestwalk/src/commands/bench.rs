//! `bench`: the simulator's own speed.
use crate::args::BenchArgs;
use anyhow::Result;
/// `nestwalk bench`.
pub fn bench(_args: &BenchArgs) -> Result<()> {
    Ok(())
}
