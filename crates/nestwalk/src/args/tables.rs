//! Which tables `compare` and `run` print.

use clap::Args as ClapArgs;

/// What is told beside the first table, and how often the experiment is made.
#[derive(ClapArgs, Debug, Clone)]
#[command(next_help_heading = "Tables")]
pub struct TableArgs {
    /// All columns: misses, references, where they were served, overheads; exits by reason; what
    /// segments and hardware for contiguity did
    #[arg(long, conflicts_with = "columns")]
    pub wide: bool,
    /// These columns in place of the first table's, by their headings (run-time, l2-tlb-mpki) or as
    /// fields of the results (vm_exits, energy.total)
    #[arg(long, value_name = "NAME,...")]
    pub columns: Option<String>,
    /// Of csv and markdown a row for each number of each machine, with the same columns whatever the
    /// machines: machine, key, value, unit, and source, profile, pages, seed, version, commit and hash
    /// of the input, so that files of many runs can be put behind each other
    #[arg(long)]
    pub long: bool,
    /// So many runs with as many seeds, from --seed on: the mean of each machine's numbers and their
    /// spread
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    pub repeat: u16,
    /// A table of energies, too: per instruction, and above the ideal machine's. JSON and CSV always
    /// have them
    #[arg(long)]
    pub energy: bool,
    /// A table of how much each price of the profile's software section decides: by how many points of
    /// overhead each machine moves when it is halved and doubled
    #[arg(long)]
    pub sensitivity: bool,
    /// A table of contiguity, too, and the field in JSON and CSV: runs of mapped pages at the end, per
    /// dimension and for both together, and how many entries of each technique cover them
    #[arg(long)]
    pub contiguity: bool,
    /// With --contiguity: what it was every so many instructions, set-up included
    #[arg(long, value_name = "INSTRUCTIONS", requires = "contiguity")]
    pub contiguity_every: Option<String>,
}
