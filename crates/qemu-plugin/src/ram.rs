//! Guest memory as the plugin sees it: the shared file behind it, and the guest's page tables in it.

use nestwalk_wire::Class;
use nestwalk_wire::memory::SharedFile;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Where RAM that does not fit below the I/O gap goes on.
const ABOVE: u64 = 4 << 30;

/// Guest memory.
pub struct Ram {
    file: SharedFile,
    /// Bytes of RAM below the gap.
    low: u64,
    /// Where QEMU has mapped the file.
    host: u64,
}

impl Ram {
    pub const fn new(file: SharedFile, low: u64) -> Self {
        Self { file, low, host: 0 }
    }

    /// Frames up to the end of the highest RAM.
    pub fn frames(&self) -> u64 {
        let bytes = self.file.len();
        (if bytes > self.low { ABOVE + bytes - self.low } else { bytes }) >> 12
    }

    /// Offset in the file.
    #[inline]
    fn offset(&self, gpa: u64) -> Option<u64> {
        let offset = if gpa < self.low { gpa } else { gpa.checked_sub(ABOVE)? + self.low };
        (offset < self.file.len()).then_some(offset)
    }

    /// The word at a gPA; `None` if there is no RAM.
    #[inline]
    pub fn load(&self, gpa: u64) -> Option<u64> {
        Some(self.file.load(self.offset(gpa)? & !7))
    }

    /// Whether there is RAM.
    #[inline]
    pub fn has(&self, gpa: u64) -> bool {
        self.offset(gpa).is_some()
    }

    /// Finds where this process, QEMU, has mapped the file.
    pub fn find_host(&mut self, path: &str) {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        // The plugin's own mapping is there, too, in no certain order.
        let own = self.file.word(0).map_or(0, |w| std::ptr::from_ref(w) as u64);
        for line in maps.lines().filter(|l| l.ends_with(path)) {
            let start = line.split('-').next().and_then(|s| u64::from_str_radix(s, 16).ok());
            if let Some(start) = start.filter(|s| *s != own) {
                self.host = start;
            }
        }
    }

    /// gPA of what is at an address of this process; `None` if that is not guest RAM.
    pub fn of_host(&self, host: u64) -> Option<u64> {
        let offset = host.checked_sub(self.host).filter(|o| *o < self.file.len())?;
        Some(if offset < self.low { offset } else { ABOVE + offset - self.low })
    }

    /// A range of the file as gPA and bytes, in pieces that do not cross the gap.
    pub fn pieces(&self, (offset, bytes): (u64, u64)) -> Vec<(u64, u64)> {
        let below = self.low.saturating_sub(offset).min(bytes);
        let mut pieces = Vec::new();
        if below > 0 {
            pieces.push((offset, below));
        }
        if below < bytes {
            pieces.push((ABOVE + offset + below - self.low, bytes - below));
        }
        pieces
    }

    /// Translates by the guest's tables as they are in memory.
    pub fn walk(&self, root: u64, levels: u8, gva: u64) -> Option<(u64, Class)> {
        let mut table = root & FRAME;
        let mut level = levels;
        loop {
            let shift = 12 + 9 * u32::from(level - 1);
            let entry = self.load(table + (gva >> shift & 511) * 8)?;
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 1 || entry & LARGE != 0 && level <= 3 {
                let inside = (1 << shift) - 1;
                let class = [Class::Small, Class::Large, Class::Huge][usize::from(level - 1)];
                return Some((entry & FRAME & !inside | gva & inside, class));
            }
            table = entry & FRAME;
            level -= 1;
        }
    }
}

/// The table that an entry of a table at `level` points to.
pub const fn child(entry: u64, level: u8) -> Option<u64> {
    let leaf = level == 1 || entry & LARGE != 0 && level <= 3;
    if entry & PRESENT == 0 || leaf { None } else { Some(entry & FRAME) }
}
