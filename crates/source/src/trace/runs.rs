//! Runs as columns: what the model guesses wrong, field by field.

use super::column::{Cursor, put_varint, unzigzag, zigzag};
use super::model::{
    Context, GUESSES, Model, Numbers, Pages, Place, Site, Touch, address, flag_bits, flags_of,
};
use nestwalk_types::{Address, Gva, Run, VcpuId};

/// Columns of runs, in the order of their numbers in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Column {
    /// One byte per run: which guess was right for what. See [`Encoder::run`].
    Code,
    /// Changes of the vCPU: runs since the last one, and the new number.
    Vcpu,
    /// Sites that are none of the first three guesses: a later guess, a new one, or its number.
    Site,
    /// The lowest byte of that number.
    SiteLow,
    /// Instruction addresses of new sites, as differences.
    Pc,
    /// Flags of new sites.
    Flags,
    /// Lines within the page, where only the page was guessed.
    Line,
    /// Pages seen before: how many of their set were used since.
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
pub(super) const COLUMNS: usize = Column::Large as usize + 1;

/// Names of columns for messages, in their order.
pub(super) const NAMES: [&str; COLUMNS] = [
    "code",
    "vcpu",
    "site",
    "site low",
    "pc",
    "flags",
    "line",
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
// How a site is told: a later guess, a new one, or its number from 8 bits up, or all of it.
const LATER: u8 = (GUESSES - SITE_TOLD as usize) as u8;
const SITE_NEW: u8 = LATER;
const NUMBER: u8 = LATER + 1;
const NUMBER_TOLD: u8 = 255;
// Bits 2 to 4: the address.
const IN_CONTEXT: u8 = 0;
const BY_STRIDE: u8 = 1;
const AS_LAST: u8 = 2;
const PAGE_IN_CONTEXT: u8 = 3;
const PAGE_AS_LAST: u8 = 4;
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
    site: Site,
    /// Page of the latest run of the same kind on this vCPU.
    page: u64,
}

impl Known {
    #[inline(always)]
    fn of(model: &Model, context: Context, number: u32, site: &Site) -> Self {
        let (_, line) = model.last(site.place.flags.is_fetch());
        Self { touch: model.touch_in(context, number), site: *site, page: line >> 6 }
    }
    #[inline(always)]
    fn stride_line(&self) -> u64 {
        self.site.touch.line.wrapping_add(self.site.stride as u64) & LINE_BITS
    }
    #[inline(always)]
    fn lines(&self, how: u8, line: u64) -> u64 {
        match how {
            IN_CONTEXT => self.touch.lines,
            _ => {
                let touch = &self.site.touch;
                touch.lines.rotate_left((line.wrapping_sub(touch.line) & 63) as u32)
            }
        }
    }
}

/// Bits of the number of a line, and of a page.
const LINE_BITS: u64 = u64::MAX >> 6;
const PAGE_BITS: u64 = u64::MAX >> 12;

/// Writes runs.
pub(super) struct Encoder {
    model: Model,
    numbers: Numbers,
    pub(super) columns: [Vec<u8>; COLUMNS],
    since_switch: u64,
    line_addresses: bool,
}

impl Encoder {
    pub(super) fn new(line_addresses: bool) -> Self {
        Self {
            model: Model::new(),
            numbers: Numbers::new(),
            columns: Default::default(),
            since_switch: 0,
            line_addresses,
        }
    }
    #[inline(always)]
    fn byte(&mut self, column: Column, byte: u8) {
        self.columns[column as usize].push(byte);
    }
    fn varint(&mut self, column: Column, value: u64) {
        put_varint(&mut self.columns[column as usize], value);
    }

    /// Adds a run. Its code is one byte: which guess gives the site (bits 0 and 1) and the address
    /// (bits 2 to 4), and whether lines, count and instructions (bits 5, 6, 7) are not what is guessed.
    pub(super) fn run(&mut self, run: &Run) {
        if run.vcpu != self.model.vcpu {
            self.varint(Column::Vcpu, self.since_switch);
            self.byte(Column::Vcpu, run.vcpu.0);
            self.since_switch = 0;
            self.model.switch(run.vcpu);
        }
        self.since_switch += 1;
        let context = self.model.context();
        let (which, number) = self.site(context, run);
        let Some(site) = self.model.site(number) else { return };
        let known = Known::of(&self.model, context, number, site);
        let how = self.address(&known, run);
        let (fetch, line) = (run.flags.is_fetch(), run.gva.value() >> 6);
        let mut code = which | how << 2;
        if run.lines != known.lines(how, line) {
            code |= LINES_TOLD;
            self.lines(run.lines, line & 63, known.site.touch.lines);
        }
        if run.count != known.touch.count {
            code |= COUNT_TOLD;
            let column = if fetch { Column::FetchCount } else { Column::DataCount };
            self.number(column, run.count);
        }
        if run.instructions != known.touch.instructions {
            code |= INSTRUCTIONS_TOLD;
            let column = if fetch { Column::FetchInstructions } else { Column::DataInstructions };
            self.number(column, run.instructions);
        }
        if !self.line_addresses {
            self.byte(Column::Low, run.gva.value() as u8 & 63);
        }
        self.byte(Column::Code, code);
        self.model.learn(context, number, run);
    }

    /// The site of a run, and which guess it is.
    fn site(&mut self, context: Context, run: &Run) -> (u8, u32) {
        let place = Place::of(run);
        let Some(number) = self.numbers.find(place, &self.model) else {
            let (pc, _) = self.model.last(run.flags.is_fetch());
            self.byte(Column::Site, SITE_NEW);
            self.byte(Column::Flags, flag_bits(run.flags));
            self.varint(Column::Pc, zigzag(place.pc.wrapping_sub(pc) as i64));
            let number = self.model.add(place);
            self.numbers.add(number, &self.model);
            return (SITE_TOLD, number);
        };
        if self.model.guess(context) == number {
            return (0, number);
        }
        let rank = self.model.guesses(context).iter().position(|&guess| guess == number);
        match rank.map(|rank| rank as u8) {
            Some(rank @ 0..SITE_TOLD) => return (rank, number),
            Some(rank) => self.byte(Column::Site, rank - SITE_TOLD),
            None if number >> 8 < u32::from(NUMBER_TOLD - NUMBER) => {
                self.byte(Column::Site, NUMBER + (number >> 8) as u8);
                self.byte(Column::SiteLow, number as u8);
            }
            None => {
                self.byte(Column::Site, NUMBER_TOLD);
                self.columns[Column::SiteLow as usize].extend(number.to_le_bytes());
            }
        }
        (SITE_TOLD, number)
    }

    fn address(&mut self, known: &Known, run: &Run) -> u8 {
        let line = run.gva.value() >> 6;
        let page = line >> 6;
        if line == run.pc.value() >> 6 {
            AS_PC
        } else if line == known.touch.line {
            IN_CONTEXT
        } else if line == known.stride_line() {
            BY_STRIDE
        } else if line == known.site.touch.line {
            AS_LAST
        } else {
            self.byte(Column::Line, line as u8 & 63);
            if page == known.touch.line >> 6 {
                PAGE_IN_CONTEXT
            } else if page == known.site.touch.line >> 6 {
                PAGE_AS_LAST
            } else {
                self.page(known, page)
            }
        }
    }

    fn page(&mut self, known: &Known, page: u64) -> u8 {
        if let Some(rank) = self.model.pages.rank(page) {
            self.model.pages.take(Pages::set(page), rank);
            self.byte(Column::Rank, rank);
            self.byte(Column::Set, Pages::set(page.wrapping_sub(known.page)) as u8);
            PAGE_RANKED
        } else {
            self.model.pages.add(page);
            self.varint(Column::NewPage, zigzag(page.wrapping_sub(known.page) as i64));
            PAGE_NEW
        }
    }

    fn number(&mut self, column: Column, value: u16) {
        self.byte(column, value.min(255) as u8);
        if value >= 255 {
            self.columns[Column::Large as usize].extend(value.to_le_bytes());
        }
    }

    fn lines(&mut self, lines: u64, own: u64, site: u64) {
        let turned = lines.rotate_right(own as u32);
        let count = lines.count_ones() as u8;
        if turned == 1 {
            self.byte(Column::Lines, LINES_OWN);
        } else if lines == site {
            self.byte(Column::Lines, LINES_OF_SITE);
        } else if turned & turned.wrapping_add(1) == 0 && count > 0 {
            self.byte(Column::Lines, UP + count);
        } else if turned & 1 == 0 || count > MOST_GAPS {
            self.byte(Column::Lines, LINES_MASK);
            self.columns[Column::Mask as usize].extend(lines.to_le_bytes());
        } else {
            self.byte(Column::Lines, GAPS + count);
            let (mut rest, mut at) = (turned & !1, 0);
            while rest != 0 {
                let next = rest.trailing_zeros();
                self.byte(Column::Gaps, (next - at - 1) as u8);
                at = next;
                rest &= rest - 1;
            }
        }
    }
}

/// Reads runs.
pub(super) struct Decoder {
    model: Model,
    columns: [Cursor; COLUMNS],
    until_switch: u64,
    line_addresses: bool,
    /// What was read cannot have been written.
    nonsense: bool,
}

impl Decoder {
    pub(super) fn new(columns: [Cursor; COLUMNS], line_addresses: bool) -> Self {
        let mut new =
            Self { model: Model::new(), columns, until_switch: 0, line_addresses, nonsense: false };
        new.await_switch();
        new
    }
    fn await_switch(&mut self) {
        let column = &mut self.columns[Column::Vcpu as usize];
        self.until_switch = if column.is_finished() { u64::MAX } else { column.varint() };
    }
    #[inline(always)]
    fn byte(&mut self, column: Column) -> u8 {
        self.columns[column as usize].byte()
    }
    /// Notes what cannot be, and goes on with something that can.
    #[cold]
    fn impossible<T: Default>(&mut self) -> T {
        self.nonsense = true;
        T::default()
    }

    /// Whether all that was read so far was there and can have been written.
    pub(super) fn is_sound(&self) -> bool {
        !self.nonsense && !self.columns.iter().any(Cursor::overrun)
    }
    /// Whether everything was read.
    pub(super) fn is_finished(&self) -> bool {
        self.is_sound() && self.columns.iter().all(Cursor::is_finished)
    }

    /// The next run. What it says means nothing if [`Decoder::is_sound`] is false afterwards.
    #[inline(always)]
    pub(super) fn run(&mut self) -> Run {
        if self.until_switch == 0 {
            self.switch();
        }
        self.until_switch -= 1;
        let code = self.byte(Column::Code);
        let context = self.model.context();
        let number = match code & 3 {
            0 => self.model.guess(context),
            SITE_TOLD => self.told_site(context),
            which => self.model.guesses(context)[usize::from(which)],
        };
        let Some(site) = self.model.site(number) else { return self.no_run() };
        let known = Known::of(&self.model, context, number, site);
        let place = known.site.place;
        let how = code >> 2 & 7;
        let line = match how {
            AS_PC => place.pc >> 6,
            IN_CONTEXT => known.touch.line,
            BY_STRIDE => known.stride_line(),
            AS_LAST => known.site.touch.line,
            _ => self.told_line(how, &known),
        };
        let fetch = place.flags.is_fetch();
        let mut lines = known.lines(how, line);
        if code & LINES_TOLD != 0 {
            lines = self.told_lines(line & 63, known.site.touch.lines);
        }
        let Touch { mut count, mut instructions, .. } = known.touch;
        if code & COUNT_TOLD != 0 {
            count = self.number(if fetch { Column::FetchCount } else { Column::DataCount });
        }
        if code & INSTRUCTIONS_TOLD != 0 {
            let column = if fetch { Column::FetchInstructions } else { Column::DataInstructions };
            instructions = self.number(column);
        }
        let mut gva = address(line);
        if !self.line_addresses {
            gva = gva.offset_by(u64::from(self.byte(Column::Low) & 63));
        }
        let pc = Gva::new(place.pc);
        let (vcpu, flags) = (self.model.vcpu, place.flags);
        let run = Run { gva, pc, lines, count, instructions, vcpu, flags };
        self.model.learn(context, number, &run);
        run
    }

    /// What stands for a run of a site that does not exist.
    #[cold]
    fn no_run(&mut self) -> Run {
        self.nonsense = true;
        let (gva, pc) = (Gva::new(0), Gva::new(0));
        let flags = nestwalk_types::RunFlags::default();
        Run { gva, pc, lines: 1, count: 1, instructions: 0, vcpu: VcpuId(0), flags }
    }

    #[cold]
    fn switch(&mut self) {
        let vcpu = VcpuId(self.byte(Column::Vcpu));
        self.model.switch(vcpu);
        self.await_switch();
        if self.until_switch == 0 {
            self.until_switch = self.impossible::<u64>() + 1;
        }
    }

    fn told_site(&mut self, context: Context) -> u32 {
        match self.byte(Column::Site) {
            later @ 0..LATER => self.model.guesses(context)[usize::from(SITE_TOLD + later)],
            SITE_NEW => {
                let bits = self.byte(Column::Flags);
                let flags = flags_of(bits).unwrap_or_else(|| self.impossible());
                let (last, _) = self.model.last(flags.is_fetch());
                let delta = unzigzag(self.columns[Column::Pc as usize].varint());
                self.model.add(Place { pc: last.wrapping_add(delta as u64), flags })
            }
            NUMBER_TOLD => {
                let low = &mut self.columns[Column::SiteLow as usize];
                u32::from_le_bytes([low.byte(), low.byte(), low.byte(), low.byte()])
            }
            high => u32::from(high - NUMBER) << 8 | u32::from(self.byte(Column::SiteLow)),
        }
    }

    fn told_line(&mut self, how: u8, known: &Known) -> u64 {
        let line = u64::from(self.byte(Column::Line) & 63);
        let page = match how {
            PAGE_IN_CONTEXT => known.touch.line >> 6,
            PAGE_AS_LAST => known.site.touch.line >> 6,
            PAGE_RANKED => {
                let rank = self.byte(Column::Rank);
                let set = known.page.wrapping_add(u64::from(self.byte(Column::Set)));
                let page = self.model.pages.take(Pages::set(set), rank);
                page.unwrap_or_else(|| self.impossible())
            }
            _ => {
                let delta = unzigzag(self.columns[Column::NewPage as usize].varint());
                let page = known.page.wrapping_add(delta as u64) & PAGE_BITS;
                self.model.pages.add(page);
                page
            }
        };
        page << 6 | line
    }

    fn told_lines(&mut self, own: u64, site: u64) -> u64 {
        let turned = match self.byte(Column::Lines) {
            LINES_OWN => 1,
            LINES_OF_SITE => return site,
            LINES_MASK => return self.columns[Column::Mask as usize].u64(),
            how @ GAPS..UP if how - GAPS <= MOST_GAPS => {
                let (mut turned, mut at) = (1, 0);
                for _ in 1..how - GAPS {
                    at += u32::from(self.byte(Column::Gaps)) + 1;
                    turned |= 1_u64.checked_shl(at).unwrap_or_else(|| self.impossible());
                }
                turned
            }
            how if (UP + 1..=UP + 64).contains(&how) => u64::MAX >> (64 - (how - UP)),
            _ => self.impossible(),
        };
        turned.rotate_left(own as u32)
    }

    fn number(&mut self, column: Column) -> u16 {
        match self.byte(column) {
            255 => u16::from_le_bytes([self.byte(Column::Large), self.byte(Column::Large)]),
            small => u16::from(small),
        }
    }
}
