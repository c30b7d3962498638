//! Writing runs.

use super::{
    AS_LAST, AS_PC, BY_STRIDE, COLUMNS, COUNT_TOLD, Column, GAPS, IN_CONTEXT, INSTRUCTIONS_TOLD,
    Known, LINES_MASK, LINES_OF_SITE, LINES_OWN, LINES_TOLD, MOST_GAPS, NUMBER, PAGE, PAGE_BESIDE,
    PAGE_FAR, PAGE_IN_CONTEXT, PAGE_NEW, PAGE_RANKED, SITE_NEW, SITE_TOLD, UP,
};
use crate::trace::column::{put_varint, zigzag};
use crate::trace::lists::Pages;
use crate::trace::model::{Context, Model, Numbers, Place, flag_bits};
use nestwalk_types::Run;

/// Writes runs.
pub(in crate::trace) struct Encoder {
    model: Model,
    numbers: Numbers,
    pub(in crate::trace) columns: [Vec<u8>; COLUMNS],
    since_switch: u64,
    line_addresses: bool,
}

impl Encoder {
    pub(in crate::trace) fn new(line_addresses: bool) -> Self {
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
    pub(in crate::trace) fn run(&mut self, run: &Run) {
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
            self.lines(run.lines, line & 63, known.last.lines);
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
            None => self.told_site(place, number),
        }
        (SITE_TOLD, number)
    }

    fn told_site(&mut self, place: Place, number: u32) {
        let Some((page, rank)) = self.model.code.ranks(place.pc, number) else {
            self.byte(Column::Site, NUMBER);
            return self.columns[Column::SiteNumber as usize].extend(number.to_le_bytes());
        };
        self.model.code.take(page, rank);
        if page < u16::from(PAGE_FAR - PAGE) {
            self.byte(Column::Site, PAGE + page as u8);
        } else {
            self.byte(Column::Site, PAGE_FAR);
            self.columns[Column::Large as usize].extend(page.to_le_bytes());
        }
        self.byte(Column::SiteRank, rank);
    }

    fn address(&mut self, known: &Known, run: &Run) -> u8 {
        let line = run.gva.value() >> 6;
        if line == run.pc.value() >> 6 {
            AS_PC
        } else if line == known.touch.line {
            IN_CONTEXT
        } else if line == known.stride_line() {
            BY_STRIDE
        } else if line == known.last.line {
            AS_LAST
        } else {
            if line >> 6 == known.touch.line >> 6 {
                self.byte(Column::NearLine, line.wrapping_sub(known.touch.line) as u8 & 63);
                return PAGE_IN_CONTEXT;
            }
            self.page(known, line)
        }
    }

    fn page(&mut self, known: &Known, line: u64) -> u8 {
        let page = line >> 6;
        let set = Pages::set(page.wrapping_sub(known.page));
        let seen = self.model.pages.rank(line);
        let last = seen.and_then(|rank| self.model.pages.last(Pages::set(page), rank));
        let (Some(rank), Some(last)) = (seen, last) else {
            self.model.pages.add(line);
            self.byte(Column::Line, line as u8 & 63);
            self.varint(Column::NewPage, zigzag(page.wrapping_sub(known.page) as i64));
            return PAGE_NEW;
        };
        self.model.pages.renew(rank, line);
        self.byte(Column::Line, line.wrapping_sub(last) as u8 & 63);
        if set == 0 {
            self.number(Column::RankBeside, rank);
            return PAGE_BESIDE;
        }
        self.number(Column::Rank, rank);
        self.byte(Column::Set, set as u8);
        PAGE_RANKED
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
