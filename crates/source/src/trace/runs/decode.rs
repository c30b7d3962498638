//! Reading runs.

use super::{
    AS_LAST, AS_PC, BY_STRIDE, COLUMNS, COUNT_TOLD, Column, GAPS, IN_CONTEXT, INSTRUCTIONS_TOLD,
    Known, LATER, LINES_MASK, LINES_OF_SITE, LINES_OWN, LINES_TOLD, MOST_GAPS, NUMBER, PAGE,
    PAGE_BESIDE, PAGE_BITS, PAGE_FAR, PAGE_IN_CONTEXT, PAGE_NEW, SITE_NEW, SITE_TOLD, UP, moved,
};
use crate::trace::column::{Cursor, unzigzag};
use crate::trace::lists::Pages;
use crate::trace::model::{Context, Model, Place, Touch, address, flags_of};
use nestwalk_types::{Address, Gva, Run, VcpuId};

/// Reads runs.
pub(in crate::trace) struct Decoder {
    model: Model,
    columns: [Cursor; COLUMNS],
    until_switch: u64,
    line_addresses: bool,
    /// What was read cannot have been written.
    nonsense: bool,
}

impl Decoder {
    pub(in crate::trace) fn new(columns: [Cursor; COLUMNS], line_addresses: bool) -> Self {
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
    pub(in crate::trace) fn is_sound(&self) -> bool {
        !self.nonsense && !self.columns.iter().any(Cursor::overrun)
    }
    /// Whether everything was read.
    pub(in crate::trace) fn is_finished(&self) -> bool {
        self.is_sound() && self.columns.iter().all(Cursor::is_finished)
    }

    /// The next runs, appended to `runs`. What they say means nothing if [`Decoder::is_sound`] is false
    /// afterwards.
    pub(in crate::trace) fn runs(&mut self, count: usize, runs: &mut Vec<Run>) {
        runs.reserve(count);
        let mut left = count as u64;
        while left > 0 {
            if self.until_switch == 0 {
                self.switch();
            }
            let alike = left.min(self.until_switch);
            self.until_switch -= alike;
            left -= alike;
            runs.extend((0..alike as usize).map(|_| self.run()));
        }
    }

    /// The next run, of the vCPU at hand.
    #[inline(always)]
    fn run(&mut self) -> Run {
        let code = self.byte(Column::Code);
        let context = self.model.context();
        let number = match code & 3 {
            0 => self.model.guess(context),
            which => self.later_site(which, context),
        };
        let Some(site) = self.model.site(number) else { return self.no_run() };
        let Place { pc, flags } = site.place;
        let fetch = flags.is_fetch();
        let known = Known::of(&self.model, context, number, site);
        let how = code >> 2 & 7;
        let line = match how {
            IN_CONTEXT => known.touch.line,
            AS_PC => pc >> 6,
            BY_STRIDE => known.stride_line(),
            AS_LAST => known.last.line,
            _ => self.told_line(how, known.touch.line, known.page),
        };
        let mut lines = known.lines(how, line);
        let Touch { mut count, mut instructions, .. } = known.touch;
        if code >= LINES_TOLD {
            if code & LINES_TOLD != 0 {
                lines = self.told_lines(line & 63, known.last.lines);
            }
            if code & COUNT_TOLD != 0 {
                count = self.number(if fetch { Column::FetchCount } else { Column::DataCount });
            }
            if code & INSTRUCTIONS_TOLD != 0 {
                let column = if fetch { Column::FetchInstructions } else { Column::DataInstructions };
                instructions = self.number(column);
            }
        }
        let mut gva = address(line);
        if !self.line_addresses {
            gva = gva.offset_by(u64::from(self.byte(Column::Low) & 63));
        }
        let run = Run { gva, pc: Gva::new(pc), lines, count, instructions, vcpu: self.model.vcpu, flags };
        self.model.learn(context, number, &run);
        run
    }

    /// A site that is not the first guess.
    #[inline(never)]
    fn later_site(&mut self, which: u8, context: Context) -> u32 {
        match which {
            SITE_TOLD => self.told_site(context),
            which => self.model.guesses(context)[usize::from(which)],
        }
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
            NUMBER => {
                let number = &mut self.columns[Column::SiteNumber as usize];
                u32::from_le_bytes([number.byte(), number.byte(), number.byte(), number.byte()])
            }
            PAGE_FAR => {
                let page = [self.byte(Column::Large), self.byte(Column::Large)];
                self.listed_site(u16::from_le_bytes(page))
            }
            page => self.listed_site(u16::from(page - PAGE)),
        }
    }

    fn listed_site(&mut self, page: u16) -> u32 {
        let rank = self.byte(Column::SiteRank);
        self.model.code.take(page, rank).unwrap_or_else(|| self.impossible())
    }

    #[inline(never)]
    fn told_line(&mut self, how: u8, in_context: u64, page: u64) -> u64 {
        if how == PAGE_IN_CONTEXT {
            return moved(in_context, self.byte(Column::NearLine));
        }
        let within = self.byte(Column::Line);
        if how == PAGE_NEW {
            let delta = unzigzag(self.columns[Column::NewPage as usize].varint());
            let page = page.wrapping_add(delta as u64) & PAGE_BITS;
            let line = page << 6 | u64::from(within & 63);
            self.model.pages.add(line);
            return line;
        }
        let (rank, other) = match how {
            PAGE_BESIDE => (self.number(Column::RankBeside), 0),
            _ => (self.number(Column::Rank), self.byte(Column::Set)),
        };
        let set = Pages::set(page.wrapping_add(u64::from(other)));
        let Some(last) = self.model.pages.last(set, rank) else { return self.impossible() };
        let line = moved(last, within);
        self.model.pages.renew(rank, line);
        line
    }

    #[inline(never)]
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
