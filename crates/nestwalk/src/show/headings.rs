//! Headings of the tables of `compare`, each with what it means: tables are made of them, and `explain`
//! tells them.

use nestwalk_report::{Align, Table};

/// A column's heading.
#[derive(Debug)]
pub struct Heading {
    /// As it is printed; a line break begins its next line.
    pub title: &'static str,
    /// On which side its cells stand.
    pub align: Align,
    /// The field of the results, or what of a machine's results it is computed from; empty for names.
    pub from: &'static str,
    /// What it says, and its unit.
    pub meaning: &'static str,
}

/// A column of numbers.
pub const fn number(title: &'static str, from: &'static str, meaning: &'static str) -> Heading {
    Heading { title, align: Align::Right, from, meaning }
}

/// A column of words.
pub const fn word(title: &'static str, from: &'static str, meaning: &'static str) -> Heading {
    Heading { title, align: Align::Left, from, meaning }
}

impl Heading {
    /// The title in one line.
    pub fn line(&self) -> String {
        self.title.replace('\n', " ").trim().to_owned()
    }
}

/// A table with these columns.
pub fn table(headings: &[Heading]) -> Table {
    headings.iter().fold(Table::new(), |table, h| table.column(h.title, h.align))
}

/// What stands behind the title of the column of run times, before the name of the baseline.
pub const RELATIVE_TO: &str = "/ ";

/// The column of machines' names, of whatever table.
pub static MACHINE: Heading = word(
    "machine",
    "name",
    "scheme[/options][:guest pages[+host pages]][@placement[+placement]], with nothing left open",
);

/// Before and after the reasons of exits, which are headings, too.
pub static EXITS: [Heading; 2] = [
    word("VM exits by reason", "vm_exits", "machines that exited, a column for each reason"),
    number(
        "per 1000 instructions",
        "1000 * vm_exits_total / instructions",
        "exits of all reasons; - if instructions are not known",
    ),
];

/// Direct segments.
pub static SEGMENTS: [Heading; 9] = [
    word("direct segments", "segments", "machines with registers for direct segments"),
    number("guest", "segments.guest.bytes", "the largest segment that a guest's kernel loaded"),
    number("VMM", "segments.vmm.bytes", "the VMM's segment at the end"),
    number("of guest RAM", "segments.vmm_percent", "what of guest memory the VMM's segment covers"),
    number(
        "escaped",
        "segments.*.escaped",
        "pages of both segments that were put into the escape filter, 4 KiB each",
    ),
    number(
        "reported",
        "segments.*.reported",
        "pages that the escape filter reports, false positives included, 4 KiB each",
    ),
    number(
        "hits",
        "segment_hits + segment_accesses",
        "accesses and walks that a segment translated in place of tables",
    ),
    number("checks gVA", "guest_segment_checks", "comparisons with the guest's segment registers"),
    number("checks gPA", "vmm_segment_checks", "comparisons with the VMM's segment registers"),
];

/// Hardware that makes use of contiguity.
pub static CONTIGUITY: [Heading; 11] = [
    word("contiguity", "contiguity", "machines whose hardware makes use of contiguous mappings"),
    number("guest\nruns", "contiguity.guest_runs", "contiguous ranges that the guest's tables map"),
    number("host\nruns", "contiguity.host_runs", "contiguous ranges that the host's tables map"),
    number(
        "guesses",
        "contiguity.predictions",
        "translations that were predicted while the walk went on",
    ),
    number(
        "right\n%",
        "contiguity.predictions_right / contiguity.predictions",
        "predictions that were right",
    ),
    number(
        "walk cycles\nhidden %",
        "contiguity.hidden_walk_cycles / walk_cycles",
        "cycles of walks behind right predictions, which nobody waited for",
    ),
    number("range\nhits", "contiguity.range_hits", "look-ups that a range TLB answered"),
    number("anchor\nhits", "contiguity.anchor_hits", "look-ups that an anchor's entry answered"),
    number("distance", "contiguity.anchor_distance", "pages from anchor to anchor at the end"),
    number(
        "background\nreferences",
        "contiguity.background_refs",
        "references to tables of ranges that no access waits for",
    ),
    number("metadata", "contiguity.metadata_bytes", "memory that the technique's tables take"),
];

/// Energy.
pub static ENERGY: [Heading; 15] = [
    word(
        "energy\npJ/instruction",
        "energy",
        "picojoules per instruction by structure, with --energy; fields are in nJ",
    ),
    number("TLBs", "energy.l1_tlb + energy.l2_tlb", "look-ups and fills of both levels of TLBs"),
    number("walk\ncaches", "energy.walk_caches", "caches of entries of upper tables"),
    number("nested\nTLB", "energy.nested_tlb", "the cache of guest-physical translations"),
    number(
        "segments,\nfilters",
        "energy.segment_checks + energy.escape_filter",
        "comparisons with segments' registers, and escape filters",
    ),
    number(
        "walk\nreferences",
        "energy.walk_references",
        "references of walks to caches and memory",
    ),
    number("trans-\nlation", "energy.translation", "the columns before it together"),
    number("data", "energy.data", "the program's references to caches and memory"),
    number("core", "energy.core", "the rest of the core: instructions"),
    number("VMM", "energy.vmm", "the hypervisor's work"),
    number("static", "energy.static", "static power over the run time"),
    number("total", "energy.total", "all of it: translation, data, core, VMM, static"),
    number(
        "dynamic\novh. %",
        "energy.dynamic_overhead_percent",
        "dynamic energy above the ideal machine's with the same guest, in % of its energy",
    ),
    number(
        "static\novh. %",
        "energy.static_overhead_percent",
        "static energy above the ideal machine's, in % of its energy",
    ),
    number("total\novh. %", "energy.overhead_percent", "both together"),
];

/// Contiguity at the end.
pub static COVERAGE: [Heading; 14] = [
    word(
        "contiguity at the end:\nentries for 99 %",
        "coverage",
        "how many entries of each technique cover 99 % of the mapped memory, with --contiguity",
    ),
    word("dimension", "coverage", "the guest's tables, the host's, or both composed"),
    number("memory", "coverage.*.pages", "memory that is mapped"),
    number("runs", "coverage.*.runs", "contiguous ranges of mapped pages"),
    number("longest", "coverage.*.longest_pages", "the longest of them"),
    number("4 KiB\npages", "coverage.*.entries.4k", "entries of 4 KiB"),
    number("2 MiB\naligned", "coverage.*.entries.2m", "aligned entries of 2 MiB, or else smaller"),
    number("1 GiB\naligned", "coverage.*.entries.1g", "aligned entries of 1 GiB, or else smaller"),
    number("CoLT\n8", "coverage.*.entries.colt-8", "entries of up to 8 contiguous pages"),
    number("clus-\ntered", "coverage.*.entries.clustered", "entries of clusters of 8 pages"),
    number("anchors", "coverage.*.entries.anchors", "anchors at the best distance"),
    number("every", "coverage.*.anchor_distance_pages", "the distance from anchor to anchor"),
    number("ranges", "coverage.*.entries.ranges", "ranges of any length"),
    number("offsets", "coverage.*.entries.offsets", "distinct offsets from virtual to physical"),
];

/// Contiguity at moments of the run.
pub static OVER_TIME: [Heading; 8] = [
    word(
        "contiguity over time:\nentries for 99 %",
        "coverage.over_time",
        "the same at moments of the run, with --contiguity-every",
    ),
    number("instructions", "coverage.over_time[].instructions", "instructions until then"),
    number("memory", "coverage.over_time[].pages", "memory that is mapped"),
    number("guest\nranges", "coverage.over_time[].guest_ranges_99", "ranges of the guest"),
    number("host\nranges", "coverage.over_time[].host_ranges_99", "ranges of the host"),
    number("both\nranges", "coverage.over_time[].both_ranges_99", "ranges of both composed"),
    number("guest\noffsets", "coverage.over_time[].guest_offsets_99", "offsets of the guest"),
    number("both\noffsets", "coverage.over_time[].both_offsets_99", "offsets of both composed"),
];

/// Estimates of a sampled run.
pub static SAMPLED: [Heading; 7] = [
    word("sampled, with\n95 % intervals", "", "the machine, with --sample"),
    number("overhead,\n% of ideal", "overhead_percent", "run time above ideal's"),
    number("+- overhead", "sampling.half_widths", "half the width of its confidence interval"),
    number(
        "translation,\n% of ideal",
        "translation_overhead_percent",
        "of this, translation's part",
    ),
    number("+- translation", "sampling.half_widths", "half the width of its confidence interval"),
    number("L2 TLB misses\n/ 1000 instr.", "l2_tlb_mpki", "misses of second-level TLBs"),
    number("+- misses", "sampling.half_widths", "half the width of its confidence interval"),
];

/// What each price decides; machines are its further headings.
pub static SENSITIVITY: [Heading; 1] = [word(
    "total ovh. %, points by\nhalving / doubling",
    "vmm_work",
    "by how many points of total overhead a machine moves when a price of the profile's software \
     section is halved and doubled, with --sensitivity",
)];

/// The table of `advise`, whose numbers are ranges over its runs.
pub static ADVICE: [Heading; 4] = [
    word(
        "choice",
        "choices[].machine",
        "advise: what could be there in place of what is, as a machine",
    ),
    number(
        "gain %",
        "choices[].gain_percent",
        "advise: by how many percent it takes less than the first of what may be there today; below 0 it \
         takes more",
    ),
    number(
        "walks\n/1000 instr.",
        "choices[].walks_per_1000_instructions",
        "advise: page walks per thousand instructions",
    ),
    number(
        "transl.\n% of it",
        "choices[].translation_percent",
        "advise: share of its own run time that translation takes",
    ),
];

/// The table of `measure`.
pub static MEASURED: [Heading; 5] = [
    word("figure", "measure.figure", "measure: what was measured"),
    word("pages", "measure.pages", "measure: the size of the pages that it is of"),
    Heading {
        title: "value",
        align: Align::Right,
        from: "measure.value",
        meaning: "measure: the figure, or `unknown`",
    },
    word("unit", "measure.unit", "measure: the figure's unit, if it has one"),
    word("from", "measure.source", "measure: what the figure follows from, or why it is unknown"),
];

/// The table of `conform --recorded`.
pub static RECORDED: [Heading; 5] = [
    word("what", "recorded.figure", "conform --recorded: exits by reason, or events by kind"),
    word("name", "recorded.name", "conform --recorded: the reason or the kind"),
    number("KVM", "recorded.real", "conform --recorded: what the real KVM did"),
    number(
        "model",
        "recorded.model",
        "conform --recorded: what the model did for the same actions",
    ),
    number(
        "machine",
        "recorded.machine",
        "conform --recorded: what a shadow machine did with the recording itself, as `compare` runs it",
    ),
];

/// The table of `measure --check`.
pub static CHECKED: [Heading; 11] = [
    word("program", "check.program", "measure --check: what was run for real, and simulated"),
    word("pages", "check.pages", "measure --check: the pages of its memory"),
    number("real\nns", "check.real_ns", "measure --check: nanoseconds of an access, measured"),
    number(
        "+",
        "check.real_spread_ns",
        "measure --check: how far the fastest quarter of its parts lies apart",
    ),
    number("simulated\nns", "check.simulated_ns", "measure --check: the same with the profile"),
    number(
        "off\n%",
        "check.deviation_percent",
        "measure --check: by how much the simulation takes longer",
    ),
    number(
        "real\n/ 2 MiB",
        "check.real_of_large",
        "measure --check: real run time, of that with pages of 2 MiB",
    ),
    number(
        "simulated\n/ 2 MiB",
        "check.simulated_of_large",
        "measure --check: the same of the simulation",
    ),
    number(
        "simulated\n/ ideal",
        "check.simulated_of_ideal",
        "measure --check: simulated, of the ideal machine",
    ),
    number(
        "walks\n/ 1000 acc.",
        "check.walks_per_1000_accesses",
        "measure --check: simulated page walks",
    ),
    number(
        "refs\n/ walk",
        "check.refs_per_walk",
        "measure --check: references of a walk, simulated",
    ),
];

/// Words of the lines around the tables, and in cells.
pub static WORDS: [(&str, &str); 36] = [
    ("advises", "line of advise: what the advice is on"),
    ("pages", "line of advise: what is resident, and how much of it large pages map"),
    ("frames", "line of advise: contiguous ranges of frames behind a process's pages"),
    ("exits", "line of advise: exits of a VM of KVM, by its statistics"),
    (
        "sampled",
        "line of advise: by what accesses were seen, and how much was used in windows of time",
    ),
    (
        "busy",
        "line of advise: processors that a process had in use; how fast its pages follow at least",
    ),
    ("faults", "line of advise: page faults of the guest that the runs counted"),
    ("ranges", "line of advise: the runs over which ranges are: seeds, or stand-ins of a process"),
    ("advice", "lines of advise: the answers, from the table"),
    ("assumes", "lines of advise: what the answer depends on and nobody has checked"),
    ("not seen", "lines of advise: what the kernel did not show, why, and what to do"),
    ("narrower", "lines of advise: which measurements would make the ranges narrower"),
    ("stand-in", "a made-up stream of accesses that is consistent with the samples of a process"),
    (
        "in order",
        "stand-in: each page that was used is visited once per shortest window: fewest misses",
    ),
    ("at random", "stand-in: every access goes to any page that was used: most misses"),
    ("source", "line: what drives the machines"),
    ("profile", "line: the hardware; `nestwalk explain NAME` tells a built-in one whole"),
    ("counted", "line: accesses and instructions behind all numbers; set-up and warm-up are not"),
    ("guest", "line: what the guest's kernel did, for each guest that occurs"),
    ("daemons", "line: what khugepaged and Translation Ranger did"),
    ("balloon", "line: what self-ballooning did for a guest segment"),
    ("dropped", "line: runs of a recording that its tables had no place for at that moment"),
    ("note", "line: what is approximate, or left out"),
    ("verdict", "lines: what follows from the table, with the counts that say why"),
    ("more", "line: options that print what the first table leaves out"),
    (
        "ideal",
        "machine: the same accesses, caches and guest kernel, and translation that costs nothing",
    ),
    ("observed", "guest: the recorded kernel's own page tables, page sizes and placement"),
    ("points", "percent of the run time of the machine that all rows are relative to"),
    ("L1", "first-level cache of data, or first level of TLBs"),
    ("L2", "second-level cache, or second level of TLBs"),
    ("LLC", "last-level cache"),
    ("mem", "memory"),
    ("MPKI", "misses per thousand instructions"),
    ("host", "dimension: guest-physical to host-physical addresses"),
    ("both", "dimensions: guest-virtual to host-physical addresses"),
    ("-", "cell: none, not known, or no such thing on that machine"),
];
