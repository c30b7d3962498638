//! Arguments about sampled runs.

use clap::Args as ClapArgs;
use std::path::PathBuf;

/// Which stretches are measured, if not all.
#[derive(ClapArgs, Debug, Clone)]
pub struct SampleArgs {
    /// For long sources: measure a unit of so many instructions every so many, after as many that warm
    /// up, and pass over the rest but for what leaves something behind. Results are estimates with
    /// confidence intervals [default: every=1M,unit=20k,warm=20k]
    #[arg(
        long,
        value_name = "KEY=COUNT,...",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = nestwalk_lab::sampling::DEFAULT,
        conflicts_with_all = ["samples", "walk_map", "contiguity_every", "vms"],
        help_heading = "Source"
    )]
    pub sample: Option<String>,
    /// With --sample: the units are the simulation points of this file, intervals of `unit` instructions
    #[arg(long, value_name = "FILE", requires_all = ["sample", "weights"], help_heading = "Source")]
    pub simpoints: Option<PathBuf>,
    /// With --simpoints: their weights
    #[arg(long, value_name = "FILE", requires = "simpoints", help_heading = "Source")]
    pub weights: Option<PathBuf>,
}
