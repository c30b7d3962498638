//! Images of page tables: 512 entries, most of them 0 or like the one before.

use super::column::{Cursor, put_varint, unzigzag, zigzag};
use super::controls::{COLUMNS, Column, Written};

/// Entries of a table of 4 KiB.
const ENTRIES: usize = 512;
/// Bits of an entry that are an address.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

// What comes next.
const ZEROS: u8 = 0;
const STEPS: u8 = 1;
const FRAME_TOLD: u8 = 2;
const ENTRY_TOLD: u8 = 3;

/// What is known from images before.
pub(super) struct Memory {
    /// The latest entry that is not 0.
    entry: u64,
    /// How far apart the latest two were.
    step: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self { entry: 0, step: 0x1000 }
    }
}

impl Memory {
    const fn next(&self) -> u64 {
        self.entry.wrapping_add(self.step)
    }
    /// A step is taken over only if nothing but the frame differs.
    fn tell(&mut self, entry: u64) {
        if (entry ^ self.entry) & !FRAME == 0 {
            self.step = entry.wrapping_sub(self.entry);
        }
        self.entry = entry;
    }
}

/// Writes a table: runs of zeros, runs of entries a constant step apart, and single ones.
pub(super) fn put(memory: &mut Memory, entries: &[u64; ENTRIES], columns: &mut Written) {
    let mut at = 0;
    while at < ENTRIES {
        let entry = entries[at];
        let rest = &entries[at..];
        if entry == 0 {
            let count = rest.iter().take_while(|&&e| e == 0).count();
            columns[Column::ImageStep as usize].push(ZEROS);
            put_varint(&mut columns[Column::ImageCount as usize], count as u64);
            at += count;
        } else if entry == memory.next() {
            let mut count = 0;
            while rest.get(count).is_some_and(|&e| e != 0 && e == memory.next()) {
                memory.entry = memory.next();
                count += 1;
            }
            columns[Column::ImageStep as usize].push(STEPS);
            put_varint(&mut columns[Column::ImageCount as usize], count as u64);
            at += count;
        } else {
            let frames = [entry, memory.entry].map(|e| (e & FRAME) >> 12);
            let delta = zigzag(frames[0].wrapping_sub(frames[1]) as i64);
            put_varint(&mut columns[Column::ImageFrame as usize], delta);
            let same = (entry ^ memory.entry) & !FRAME == 0;
            columns[Column::ImageStep as usize].push(if same { FRAME_TOLD } else { ENTRY_TOLD });
            if !same {
                // The bits above and below the frame, side by side.
                let bits = (entry & !FRAME).rotate_left(12);
                put_varint(&mut columns[Column::ImageBits as usize], bits);
            }
            memory.tell(entry);
            at += 1;
        }
    }
}

/// Reads a table; `None` if this cannot be one.
pub(super) fn get(
    memory: &mut Memory,
    columns: &mut [Cursor; COLUMNS],
) -> Option<Option<Box<[u64; ENTRIES]>>> {
    let mut entries = Box::new([0; ENTRIES]);
    let mut at = 0;
    while at < ENTRIES {
        let step = columns[Column::ImageStep as usize].byte();
        if let ZEROS | STEPS = step {
            let count = columns[Column::ImageCount as usize].varint();
            let count = usize::try_from(count).ok().filter(|c| (1..=ENTRIES - at).contains(c))?;
            if step == STEPS {
                for entry in &mut entries[at..at + count] {
                    memory.entry = memory.next();
                    *entry = memory.entry;
                }
            }
            at += count;
            continue;
        }
        let delta = unzigzag(columns[Column::ImageFrame as usize].varint()) as u64;
        let frame = ((memory.entry & FRAME) >> 12).wrapping_add(delta) << 12 & FRAME;
        let bits = match step {
            FRAME_TOLD => memory.entry,
            ENTRY_TOLD => columns[Column::ImageBits as usize].varint().rotate_right(12),
            _ => return None,
        };
        entries[at] = frame | bits & !FRAME;
        memory.tell(entries[at]);
        at += 1;
    }
    Some(Some(entries))
}
