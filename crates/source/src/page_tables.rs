//! Page tables that come with a trace: dumps with a line for each page, as artifacts of the field
//! publish.
//!
//! A line has a virtual and a physical address, hexadecimal with or without `0x`, and perhaps the size
//! of the page (`4096`, `4K`, `2M`, `1G`; 4 KiB if there is none), with blanks, commas, colons, `|` or
//! arrows between them: `0x7f0012345000 0x1234000`. Lines with `#` and a first line without numbers are
//! comments. Addresses within the page are the page's; both must be the same.
//!
//! [`Mapped`] makes of a trace with such a dump the stream of a guest: the tables are built once, with
//! every permission and all accessed and dirty bits set, behind the memory that the dump names, and
//! do not change.

mod mapped;

use crate::bytes::Window;
use crate::drmemtrace::{self, v2p};
use crate::input::{not_empty, open_file};
use crate::lines::{decimal, hex, trim};
use nestwalk_types::{
    Address, Control, Filter, Gpa, GuestInfo, Gva, Hpa, PageSize, ProcessId, SourceError, VcpuId,
};
use std::collections::BTreeMap;
use std::path::Path;

pub use mapped::Mapped;

/// P, R/W, U/S, A, D of an entry, and PS of one that maps a large page (SDM vol. 3A, "4-Level Paging and
/// 5-Level Paging").
const LEAF: u64 = 1 | 2 | 4 | 0x20 | 0x40;
const TABLE: u64 = 1 | 2 | 4 | 0x20;
const LARGE: u64 = 0x80;
/// Levels of the tables.
const LEVELS: u32 = 4;
/// Where memory has a gap for devices: from 3 to 4 GiB.
const GAP: u64 = 3 << 30;
const GAP_BYTES: u64 = 1 << 30;
/// Guests with less memory than this have it without a gap.
const WITHOUT_GAP: u64 = 0xe000_0000;
/// Highest address of memory: 52 bits.
const HIGHEST: u64 = 1 << 52;

/// A line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    gva: u64,
    gpa: u64,
    size: PageSize,
    line: u64,
}

/// A page as another format says it.
pub(crate) struct Listed {
    pub(crate) gva: u64,
    pub(crate) gpa: u64,
    pub(crate) size: PageSize,
    /// The line that says it, if it is text.
    pub(crate) line: u64,
}

/// The pages of a dump.
pub struct PageTables {
    name: String,
    /// They are those of every process.
    shared: bool,
    /// What results must name.
    notes: Vec<String>,
    /// By virtual address.
    pages: Vec<Page>,
    /// Addresses from 3 GiB on were moved up by one.
    moved: bool,
}

/// The words of a line: what stands between separators.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_separator = |byte: &u8| byte.is_ascii_whitespace() || b",:;|=->".contains(byte);
    line.split(is_separator).filter(|word| !word.is_empty())
}

/// A word that is a hexadecimal number.
fn number(word: &[u8]) -> Option<u64> {
    hex(word).filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value)
}

/// A word that is the size of a page.
fn size(word: &[u8]) -> Option<PageSize> {
    let bytes = if word.starts_with(b"0x") {
        number(word)?
    } else {
        let (value, unit) = decimal(word)?;
        let shift = match unit.first().map(u8::to_ascii_uppercase) {
            None => 0,
            Some(b'K') => 10,
            Some(b'M') => 20,
            Some(b'G') => 30,
            _ => return None,
        };
        u64::from(value) << shift
    };
    [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G]
        .into_iter()
        .find(|s| s.bytes() == bytes)
}

/// The page of a line; `None` if there is none in it.
fn page(line: &[u8], number_of_line: u64) -> Result<Option<Page>, String> {
    if line.is_empty() || line[0] == b'#' {
        return Ok(None);
    }
    let mut words = words(line);
    let numbers = (words.next().and_then(number), words.next().and_then(number));
    let (Some(gva), Some(gpa)) = numbers else {
        let is_title = line.len() < 200 && line.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
        if number_of_line == 1 && is_title && numbers == (None, None) {
            return Ok(None);
        }
        return Err("is no page; write a virtual and a physical address, hexadecimal, as in \
                    `0x7f0012345000 0x1234000`"
            .into());
    };
    let size = match words.next() {
        None => PageSize::SIZE_4K,
        Some(word) => size(word).ok_or_else(|| {
            let word = String::from_utf8_lossy(word);
            format!("`{}` is no size of a page; there are 4K, 2M and 1G", word.escape_debug())
        })?,
    };
    if (gva ^ gpa) & size.mask() != 0 {
        return Err(format!(
            "{gva:#x} and {gpa:#x} are at different places of a page of {} bytes; addresses are \
             needed, not numbers of pages",
            size.bytes()
        ));
    }
    if !matches!((gva as i64) >> 47, 0 | -1) {
        return Err(format!("{gva:#x} is no canonical address of 48 bits"));
    }
    if gpa >= HIGHEST {
        return Err(format!("{gpa:#x} is beyond the 52 bits of physical addresses"));
    }
    let (gva, gpa) = (gva & !size.mask(), gpa & !size.mask());
    Ok(Some(Page { gva, gpa, size, line: number_of_line }))
}

/// By virtual address, each once.
fn sort(pages: &mut Vec<Page>) {
    pages.sort_by_key(|p| (p.gva, p.line));
    pages.dedup_by(|b, a| (a.gva, a.gpa, a.size) == (b.gva, b.gpa, b.size));
}

/// What is wrong if a page has two places.
fn overlap(pages: &[Page]) -> Option<String> {
    let w = pages.windows(2).find(|w| w[1].gva - w[0].gva < w[0].size.bytes())?;
    Some(format!(
        "lines {} and {} both map {:#x}; a page has one place",
        w[0].line, w[1].line, w[1].gva
    ))
}

/// Longest `v2p.textproto`: millions of pages.
const TEXT_MAX: usize = 256 << 20;

impl PageTables {
    /// Reads a dump, plain or compressed as a trace may be, `v2p.textproto` of a drmemtrace, or the
    /// markers of a drmemtrace that say where its pages are.
    ///
    /// # Errors
    /// The file cannot be read, a line is no page, a page has two places, or there is none.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        if path.is_dir() {
            return v2p::of_markers(path);
        }
        let (name, mut file, _) = open_file(path)?;
        if drmemtrace::is_zip(&mut file) {
            return v2p::of_markers(path);
        }
        let mut window = not_empty(&name, Window::file(file))?;
        let head = window.peek(4096);
        if drmemtrace::matches(head) {
            return v2p::of_markers(path);
        }
        if v2p::is_v2p(head) {
            return Self::textproto(name, window);
        }
        Self::read(name, window)
    }

    /// Reads `v2p.textproto` of a drmemtrace.
    fn textproto(name: String, mut window: Window) -> Result<Self, SourceError> {
        let text = window.peek(TEXT_MAX).to_vec();
        let fail = |message| SourceError { source: name.clone(), message };
        window.failure().map_err(fail)?;
        if text.len() == TEXT_MAX {
            return Err(fail(format!("more than {TEXT_MAX} bytes; that is no list of pages")));
        }
        let pages = v2p::parse(&text).map_err(fail)?;
        for p in &pages {
            let fits = (p.gva ^ p.gpa) & p.size.mask() == 0
                && matches!(p.gva as i64 >> 47, 0 | -1)
                && p.gpa < HIGHEST;
            if !fits {
                return Err(fail(format!(
                    "line {}: {:#x} cannot be at {:#x} with pages of {} bytes",
                    p.line,
                    p.gva,
                    p.gpa,
                    p.size.bytes()
                )));
            }
        }
        if pages.is_empty() {
            return Err(fail("no address_mapping in it".into()));
        }
        let tables = Self::listed(name.clone(), pages, true, Vec::new());
        overlap(&tables.pages).map_or(Ok(tables), |message| Err(fail(message)))
    }

    /// Of pages that are listed elsewhere: those of every process, or of one.
    pub(crate) fn listed(
        name: String,
        pages: Vec<Listed>,
        shared: bool,
        notes: Vec<String>,
    ) -> Self {
        let page = |p: Listed| {
            let mask = p.size.mask();
            Page { gva: p.gva & !mask, gpa: p.gpa & !mask, size: p.size, line: p.line }
        };
        let mut pages: Vec<Page> = pages.into_iter().map(page).collect();
        sort(&mut pages);
        Self::placed(name, pages, shared, notes)
    }

    /// With the gap for devices left free.
    fn placed(name: String, mut pages: Vec<Page>, shared: bool, notes: Vec<String>) -> Self {
        let moved = pages.iter().any(|p| p.gpa + p.size.bytes() > GAP && p.gpa < GAP + GAP_BYTES);
        if moved {
            for page in pages.iter_mut().filter(|p| p.gpa >= GAP) {
                page.gpa += GAP_BYTES;
            }
        }
        Self { name, shared, notes, pages, moved }
    }

    /// Reads the dump of the host beside that of the guest: where the host has each page of the guest's
    /// memory, first address and size. What was moved in the guest is moved here.
    ///
    /// # Errors
    /// As [`PageTables::open`].
    pub fn open_host(&self, path: &Path) -> Result<Vec<(Gpa, Hpa, PageSize)>, SourceError> {
        let (name, file, _) = open_file(path)?;
        let window = not_empty(&name, Window::file(file))?;
        let pages = Self::lines(&name, window)?;
        let moved = |gpa: u64| if self.moved && gpa >= GAP { gpa + GAP_BYTES } else { gpa };
        let page = |p: Page| (Gpa::new(moved(p.gva)), Hpa::new(p.gpa), p.size);
        Ok(pages.into_iter().map(page).collect())
    }

    pub(crate) fn read(name: String, window: Window) -> Result<Self, SourceError> {
        let pages = Self::lines(&name, window)?;
        Ok(Self::placed(name, pages, false, Vec::new()))
    }

    /// The pages of a dump, by virtual address.
    fn lines(name: &str, mut window: Window) -> Result<Vec<Page>, SourceError> {
        let fail = |message| SourceError { source: name.to_owned(), message };
        let (mut pages, mut line) = (Vec::new(), 0);
        loop {
            let offset = window.offset();
            let rest = window.rest();
            let (end, last) = match memchr::memchr(b'\n', rest) {
                Some(end) => (end + 1, false),
                None if window.refill() => continue,
                None => (window.rest().len(), true),
            };
            if last && end == 0 {
                break;
            }
            line += 1;
            let found = page(trim(&window.rest()[..end]), line);
            pages.extend(found.map_err(|e| fail(format!("line {line} at byte {offset}: {e}")))?);
            window.consume(end);
        }
        window.failure().map_err(fail)?;
        sort(&mut pages);
        if let Some(message) = overlap(&pages) {
            return Err(fail(message));
        }
        if pages.is_empty() {
            return Err(fail("no page; write a line with two addresses for each".into()));
        }
        Ok(pages)
    }

    /// The first address behind the memory that is named, above the gap if any is above it.
    fn end(&self) -> u64 {
        self.pages.iter().map(|p| p.gpa + p.size.bytes()).max().unwrap_or(0)
    }

    /// The tables, by address, and the first address behind them. They lie one after the other from the
    /// root on.
    fn tables(&self) -> (BTreeMap<u64, Box<[u64; 512]>>, u64) {
        let mut next = self.root();
        let mut tables = BTreeMap::new();
        let mut new = |tables: &mut BTreeMap<u64, Box<[u64; 512]>>| {
            let at = next;
            next += 0x1000;
            tables.insert(at, Box::new([0; 512]));
            at
        };
        let root = new(&mut tables);
        for page in &self.pages {
            let leaf_level = (page.size.bytes().trailing_zeros() - 12) / 9 + 1;
            let mut table = root;
            for level in (leaf_level..=LEVELS).rev() {
                let index = (page.gva >> (12 + 9 * (level - 1)) & 511) as usize;
                let entry = tables.get(&table).map_or(0, |t| t[index]);
                let entry = if level == leaf_level {
                    page.gpa | LEAF | if level > 1 { LARGE } else { 0 }
                } else if entry == 0 {
                    new(&mut tables) | TABLE
                } else {
                    entry
                };
                if let Some(words) = tables.get_mut(&table) {
                    words[index] = entry;
                }
                table = entry & !0xfff;
            }
        }
        (tables, next)
    }

    /// Bytes of memory of the guest, by where it ends.
    fn memory(end: u64) -> u64 {
        let whole = end.next_multiple_of(2 << 20);
        if whole > GAP { (whole - GAP_BYTES).max(WITHOUT_GAP) } else { whole }
    }

    /// What the stream of the guest begins with: its memory, its tables, and the process that has them.
    fn controls(&self) -> (Vec<Control>, GuestInfo) {
        let vcpu = VcpuId(0);
        let (tables, end) = self.tables();
        let root = Gpa::new(self.root());
        let mut controls: Vec<Control> = self.backed(end);
        controls.extend(tables.into_iter().map(|(at, entries)| Control::TableAdded {
            vcpu,
            gpa: Gpa::new(at),
            entries: Some(entries),
        }));
        controls.push(Control::LoadCr3 { vcpu, root, pcid: 0, keep: false });
        controls.push(Control::Process { vcpu, root, id: ProcessId(1), name: "trace".into() });
        let info = GuestInfo {
            memory_bytes: Self::memory(end),
            paging: "4-level".into(),
            vcpus: 1,
            filter: Filter::RUNS,
        };
        (controls, info)
    }

    /// Where the root is: behind the pages, and behind the gap if the tables would reach into it.
    fn root(&self) -> u64 {
        let end = self.end();
        let most = (self.pages.len() as u64 * u64::from(LEVELS - 1) + 1) << 12;
        if end + most > GAP { end.max(GAP + GAP_BYTES) } else { end }
    }

    /// Memory that is used: that of the pages, and of the tables up to `end`.
    fn backed(&self, end: u64) -> Vec<Control> {
        let root = self.root();
        let mut used: Vec<(u64, u64)> = self
            .pages
            .iter()
            .map(|p| (p.gpa, p.gpa + p.size.bytes()))
            .chain([(root, end)])
            .collect();
        used.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (start, end) in used {
            match ranges.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => ranges.push((start, end)),
            }
        }
        let backed =
            |(start, end)| Control::Prefault { start: Gpa::new(start), bytes: end - start };
        ranges.into_iter().map(backed).collect()
    }
}

/// Where the dump puts an address; for tests.
#[doc(hidden)]
impl PageTables {
    /// The physical address of a virtual one, by the lines alone.
    pub fn look_up(&self, gva: Gva) -> Option<Gpa> {
        let index = self.pages.partition_point(|p| p.gva <= gva.value()).checked_sub(1)?;
        let page = &self.pages[index];
        let offset = gva.value() - page.gva;
        (offset < page.size.bytes()).then(|| Gpa::new(page.gpa).offset_by(offset))
    }
}
