//! Runs as columns: what the model guesses wrong, field by field.

use super::column::{Cursor, put_varint, unzigzag, zigzag};
use super::model::{Guess, Model, Pages, Place, Site, flag_bits, flags_of};
use nestwalk_types::{Gva, Run, VcpuId};

/// Columns of runs, in the order of their numbers in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Column {
    /// One byte per run: which guess was right for what. See [`Encoder::run`].
    Code,
    /// Changes of the vCPU: runs since the last one, and the new number.
    Vcpu,
    /// Instruction addresses that no table has, as differences.
    Pc,
    /// Flags of the same runs.
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

// Bits 0..2 of the code: the instruction address and the flags.
const PC_FOLLOWS: u8 = 0;
const PC_NEXT: u8 = 1;
const PC_SECOND: u8 = 2;
const PC_TOLD: u8 = 3;
// Bits 2..5: the address.
const BY_FOLLOWER: u8 = 0;
const BY_STRIDE: u8 = 1;
const AS_LAST: u8 = 2;
const PAGE_OF_FOLLOWER: u8 = 3;
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

/// What the tables say of a run once its instruction address is known.
struct Known {
    follower: Run,
    site: Site,
    /// Page of the latest run of the same kind on this vCPU.
    page: u64,
}

impl Known {
    #[inline(always)]
    fn of(model: &Model, follower: &Run, place: Place) -> Self {
        let last = &model.lane().last[usize::from(place.flags.is_fetch())];
        Self { follower: *follower, site: *model.site(place), page: last.gva.value() >> 12 }
    }
    #[inline(always)]
    fn follower_line(&self) -> u64 {
        self.follower.gva.value() >> 6
    }
    #[inline(always)]
    fn site_line(&self) -> u64 {
        self.site.run.gva.value() >> 6
    }
    #[inline(always)]
    fn stride_line(&self) -> u64 {
        self.site_line().wrapping_add(self.site.stride as u64) & LINE_BITS
    }
    /// The run whose count and instructions are guessed to be the same.
    #[inline(always)]
    fn basis(&self, pc: u8) -> &Run {
        if pc == PC_FOLLOWS { &self.follower } else { &self.site.run }
    }
    #[inline(always)]
    fn lines(&self, how: u8, fetch: bool, own: u64) -> u64 {
        match how {
            BY_FOLLOWER => self.follower.lines,
            _ if fetch => self.site.run.lines,
            _ => own,
        }
    }
}

/// Bits of the number of a line, and of a page.
const LINE_BITS: u64 = u64::MAX >> 6;
const PAGE_BITS: u64 = u64::MAX >> 12;

/// Writes runs.
pub(super) struct Encoder {
    model: Model,
    pub(super) columns: [Vec<u8>; COLUMNS],
    since_switch: u64,
    line_addresses: bool,
}

impl Encoder {
    pub(super) fn new(line_addresses: bool) -> Self {
        Self { model: Model::new(), columns: Default::default(), since_switch: 0, line_addresses }
    }
    #[inline(always)]
    fn byte(&mut self, column: Column, byte: u8) {
        self.columns[column as usize].push(byte);
    }
    fn varint(&mut self, column: Column, value: u64) {
        put_varint(&mut self.columns[column as usize], value);
    }

    /// Adds a run. Its code is one byte: which guess gives the instruction address (bits 0 and 1)
    /// and the address (bits 2 to 4), and whether lines, count and instructions (bits 5, 6, 7) are
    /// not what is guessed.
    pub(super) fn run(&mut self, run: &Run) {
        if run.vcpu != self.model.vcpu {
            self.varint(Column::Vcpu, self.since_switch);
            self.byte(Column::Vcpu, run.vcpu.0);
            self.since_switch = 0;
            self.model.switch(run.vcpu);
        }
        self.since_switch += 1;
        let guess = self.model.guess();
        let pc = self.pc(guess, run);
        let known = Known::of(&self.model, self.model.follower(guess), Place::of(run));
        let how = self.address(&known, run);
        let (fetch, line) = (run.flags.is_fetch(), run.gva.value() >> 6);
        let own = 1 << (line & 63);
        let mut code = pc | how << 2;
        if run.lines != known.lines(how, fetch, own) {
            code |= LINES_TOLD;
            self.lines(run.lines, line & 63, known.site.run.lines);
        }
        let basis = known.basis(pc);
        if run.count != basis.count {
            code |= COUNT_TOLD;
            let column = if fetch { Column::FetchCount } else { Column::DataCount };
            self.number(column, run.count);
        }
        if run.instructions != basis.instructions {
            code |= INSTRUCTIONS_TOLD;
            let column = if fetch { Column::FetchInstructions } else { Column::DataInstructions };
            self.number(column, run.instructions);
        }
        if !self.line_addresses {
            self.byte(Column::Low, run.gva.value() as u8 & 63);
        }
        self.byte(Column::Code, code);
        self.model.learn(guess, run);
    }

    fn pc(&mut self, guess: Guess, run: &Run) -> u8 {
        let place = Place::of(run);
        let [next, second] = *self.model.next(guess);
        if Place::of(self.model.follower(guess)) == place {
            return PC_FOLLOWS;
        } else if next == place {
            return PC_NEXT;
        } else if second == place {
            return PC_SECOND;
        }
        let last = self.model.lane().last[usize::from(run.flags.is_fetch())].pc.value();
        self.byte(Column::Flags, flag_bits(run.flags));
        self.varint(Column::Pc, zigzag(run.pc.value().wrapping_sub(last) as i64));
        PC_TOLD
    }

    fn address(&mut self, known: &Known, run: &Run) -> u8 {
        let line = run.gva.value() >> 6;
        let page = line >> 6;
        if line == run.pc.value() >> 6 {
            AS_PC
        } else if line == known.follower_line() {
            BY_FOLLOWER
        } else if line == known.stride_line() {
            BY_STRIDE
        } else if line == known.site_line() {
            AS_LAST
        } else {
            self.byte(Column::Line, line as u8 & 63);
            if page == known.follower_line() >> 6 {
                PAGE_OF_FOLLOWER
            } else if page == known.site_line() >> 6 {
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
        let guess = self.model.guess();
        let follower = *self.model.follower(guess);
        let place = match code & 3 {
            PC_FOLLOWS => Place::of(&follower),
            PC_NEXT => self.model.next(guess)[0],
            PC_SECOND => self.model.next(guess)[1],
            _ => self.told_pc(),
        };
        let known = Known::of(&self.model, &follower, place);
        let how = code >> 2 & 7;
        let line = match how {
            AS_PC => place.pc >> 6,
            BY_FOLLOWER => known.follower_line(),
            BY_STRIDE => known.stride_line(),
            AS_LAST => known.site_line(),
            _ => self.told_line(how, &known),
        };
        let fetch = place.flags.is_fetch();
        let mut lines = known.lines(how, fetch, 1 << (line & 63));
        if code & LINES_TOLD != 0 {
            lines = self.told_lines(line & 63, known.site.run.lines);
        }
        let basis = known.basis(code & 3);
        let (mut count, mut instructions) = (basis.count, basis.instructions);
        if code & COUNT_TOLD != 0 {
            count = self.number(if fetch { Column::FetchCount } else { Column::DataCount });
        }
        if code & INSTRUCTIONS_TOLD != 0 {
            let column = if fetch { Column::FetchInstructions } else { Column::DataInstructions };
            instructions = self.number(column);
        }
        let mut gva = line << 6;
        if !self.line_addresses {
            gva |= u64::from(self.byte(Column::Low) & 63);
        }
        let run = Run {
            gva: Gva::new(gva),
            pc: Gva::new(place.pc),
            lines,
            count,
            instructions,
            vcpu: self.model.vcpu,
            flags: place.flags,
        };
        self.model.learn(guess, &run);
        run
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

    fn told_pc(&mut self) -> Place {
        let bits = self.byte(Column::Flags);
        let flags = flags_of(bits).unwrap_or_else(|| self.impossible());
        let last = self.model.lane().last[usize::from(flags.is_fetch())].pc.value();
        let delta = unzigzag(self.columns[Column::Pc as usize].varint());
        Place { pc: last.wrapping_add(delta as u64), flags }
    }

    fn told_line(&mut self, how: u8, known: &Known) -> u64 {
        let line = u64::from(self.byte(Column::Line) & 63);
        let page = match how {
            PAGE_OF_FOLLOWER => known.follower_line() >> 6,
            PAGE_AS_LAST => known.site_line() >> 6,
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
