//! Runs as columns: what the model guesses wrong, field by field.

mod decode;
mod encode;

pub(in crate::trace) use decode::Decoder;
pub(in crate::trace) use encode::Encoder;

use crate::trace::model::{Context, GUESSES, Model, Site, Touch};

/// Columns of runs, in the order of their numbers in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in crate::trace) enum Column {
    /// One byte per run: which guess was right for what. See [`Encoder::run`].
    Code,
    /// Changes of the vCPU: runs since the last one, and the new number.
    Vcpu,
    /// Sites that are none of the first three guesses: a later guess, a new one, or how many pages
    /// of code were told since its own.
    Site,
    /// And how many sites of that page.
    SiteRank,
    /// Sites that are in no list, by number.
    SiteNumber,
    /// Instruction addresses of new sites, as differences.
    Pc,
    /// Flags of new sites.
    Flags,
    /// Lines within the page, where only the page was guessed: as differences to the page's last.
    Line,
    /// The same, where the page is that of the guess.
    NearLine,
    /// Pages seen before, of the set of the page before: how many of that set were used since.
    RankBeside,
    /// Pages seen before, of another set: as many.
    Rank,
    /// And their set, as a difference.
    Set,
    /// Pages not seen before, as differences.
    NewPage,
    /// The lowest 6 bits of addresses, if the file has them.
    Low,
    /// How lines are said.
    Lines,
    /// Lines, as gaps.
    Gaps,
    /// Lines, as they are.
    Mask,
    /// Counts of data runs.
    DataCount,
    /// Counts of fetch runs.
    FetchCount,
    /// Instructions of data runs.
    DataInstructions,
    /// Instructions of fetch runs.
    FetchInstructions,
    /// Counts and instructions of 255 and more.
    Large,
}

/// How many columns there are.
pub(in crate::trace) const COLUMNS: usize = Column::Large as usize + 1;

/// Names of columns for messages, in their order.
pub(in crate::trace) const NAMES: [&str; COLUMNS] = [
    "code",
    "vcpu",
    "site",
    "site rank",
    "site number",
    "pc",
    "flags",
    "line",
    "near line",
    "rank beside",
    "rank",
    "set",
    "new page",
    "low",
    "lines",
    "gaps",
    "mask",
    "data count",
    "fetch count",
    "data instructions",
    "fetch instructions",
    "large",
];

// Bits 0 and 1 of the code: the site. One of the first guesses, or told.
const SITE_TOLD: u8 = 3;
// How a site is told: a later guess, a new one, by the rank of its page, by one that is larger, or by
// its number.
const LATER: u8 = (GUESSES - SITE_TOLD as usize) as u8;
const SITE_NEW: u8 = LATER;
const PAGE: u8 = LATER + 1;
const PAGE_FAR: u8 = 254;
const NUMBER: u8 = 255;
// Bits 2 to 4: the address.
const IN_CONTEXT: u8 = 0;
const BY_STRIDE: u8 = 1;
const AS_LAST: u8 = 2;
const PAGE_IN_CONTEXT: u8 = 3;
const PAGE_BESIDE: u8 = 4;
const PAGE_RANKED: u8 = 5;
const PAGE_NEW: u8 = 6;
const AS_PC: u8 = 7;
// Bits 5, 6, 7: told, since the guess was wrong.
const LINES_TOLD: u8 = 1 << 5;
const COUNT_TOLD: u8 = 1 << 6;
const INSTRUCTIONS_TOLD: u8 = 1 << 7;

// How lines are said: only that of the address; those of the site; as a mask; `GAPS + n` for n lines
// as gaps, upwards from that of the address and around; `UP + n` for n lines upwards from it.
const LINES_OWN: u8 = 0;
const LINES_OF_SITE: u8 = 1;
const LINES_MASK: u8 = 2;
const GAPS: u8 = 3;
const MOST_GAPS: u8 = 20;
const UP: u8 = 60;

/// What the tables say of a run once its site is known.
struct Known {
    /// What the site touched last in this context.
    touch: Touch,
    /// What it touched last at all, and how far its address moved then, in lines.
    last: Touch,
    stride: i64,
    /// Page of the latest run of the same kind on this vCPU.
    page: u64,
}

impl Known {
    #[inline(always)]
    fn of(model: &Model, context: Context, number: u32, site: &Site) -> Self {
        let (_, line) = model.last(site.place.flags.is_fetch());
        Self { touch: model.touch_in(context, number, site), last: site.touch, stride: site.stride, page: line >> 6 }
    }
    #[inline(always)]
    fn stride_line(&self) -> u64 {
        self.last.line.wrapping_add(self.stride as u64) & LINE_BITS
    }
    #[inline(always)]
    fn lines(&self, how: u8, line: u64) -> u64 {
        match how {
            IN_CONTEXT => self.touch.lines,
            _ => {
                let Touch { lines, line: last, .. } = self.last;
                lines.rotate_left((line.wrapping_sub(last) & 63) as u32)
            }
        }
    }
}

/// Bits of the number of a line, and of a page.
const LINE_BITS: u64 = u64::MAX >> 6;
const PAGE_BITS: u64 = u64::MAX >> 12;

/// The line so much further on in the same page, around its end.
const fn moved(line: u64, by: u8) -> u64 {
    line & !63 | line.wrapping_add(by as u64) & 63
}
