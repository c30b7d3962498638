//! The hypervisor's records, counted again from the tables that hardware walks.

use super::DirectMmu;
use nestwalk_tables::Entry;
use nestwalk_tables::entry::{LARGE, WRITE};
use nestwalk_types::ByNumber;
use nestwalk_types::{Address, Gpa, Hpa};

/// What a frame is used for, by the tables.
#[derive(Default, PartialEq, Eq, Debug, Clone, Copy)]
struct Uses {
    table: u32,
    writable: u32,
}

impl DirectMmu {
    /// Counts all uses again and says what the records have wrong: nothing, but for a bug.
    pub fn audit(&self) -> Vec<String> {
        let (mut wrong, mut uses) = (Vec::new(), ByNumber::<Uses>::new());
        for table in self.memory.pages() {
            let piece = self.pieces.get(&table.page_number());
            let level = match (piece, self.guest_page(table)) {
                (Some(piece), _) => piece.level,
                (None, Some(gfn)) => self.info.get(gfn).table,
                (None, None) => 0,
            };
            if level == 0 {
                wrong.push(format!("{table:?} is walked and no table"));
                continue;
            }
            self.audit_table(table, level, &mut uses, &mut wrong);
        }
        for (gfn, info) in self.info.all() {
            let found = uses.remove(gfn).unwrap_or_default();
            let recorded = Uses {
                table: info.table_uses - u32::from(info.pinned),
                writable: info.writable_uses,
            };
            if found != recorded {
                wrong.push(format!("page {gfn:#x}: {recorded:?} recorded, {found:?} found"));
            }
            if info.table_uses > 0 && info.writable_uses > 0 {
                wrong.push(format!("page {gfn:#x} is a table and writable"));
            }
            if (info.table > 0) != (info.table_uses > 0) {
                wrong.push(format!("page {gfn:#x}: a table that is not used: {info:?}"));
            }
            let machine = Hpa::new(info.machine.wrapping_sub(1) << 12);
            if info.machine > 0 && self.memory.contains(machine) != (info.table > 0) {
                wrong.push(format!("page {gfn:#x}: {info:?}, but hardware has it otherwise"));
            }
        }
        if !uses.is_empty() {
            wrong.push(format!("uses of unknown pages: {uses:?}"));
        }
        wrong
    }

    fn audit_table(
        &self,
        table: Hpa,
        level: u8,
        uses: &mut ByNumber<Uses>,
        wrong: &mut Vec<String>,
    ) {
        let bytes = u64::from(self.mode.entry_bytes);
        for at in (0..4096 / bytes).map(|i| table.offset_by(i * bytes)) {
            let entry = Entry(self.memory.read(at, self.mode.entry_bytes).unwrap_or(0));
            if !entry.is_present() || self.splits.contains_key(&at) {
                continue;
            }
            let Some(gfn) = self.guest_page(entry.target()) else {
                wrong.push(format!("{at:?} points to {entry:?}, no page of the guest"));
                continue;
            };
            let used = uses.get_or_insert(gfn, Uses::default);
            let large = level > 1 && self.mode.may_be_leaf(level) && entry.has(LARGE);
            if level == 1 || large {
                used.writable += u32::from(level == 1 && entry.has(WRITE));
                if !self.mappings.entries(gfn).contains(&at) {
                    wrong
                        .push(format!("{at:?} maps page {gfn:#x}, and the reverse map has it not"));
                }
            } else {
                used.table += 1;
                if self.info.get(gfn).table + 1 != level {
                    wrong.push(format!(
                        "{at:?} of level {level} points to {:?}",
                        self.page(Gpa::new(gfn << 12))
                    ));
                }
            }
        }
    }
}
