//! Guest RAM within the process of a VMM: which of its addresses are which guest-physical ones.

use super::{PAGE_BYTES, Region};
use nestwalk_contiguity::RunSet;
use thiserror::Error;

const GIB: u64 = 1 << 30;
const HIGH: u64 = 4 * GIB;
/// QEMU's default memory, bytes.
const DEFAULT_RAM: u64 = 128 << 20;

/// A piece of guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamPiece {
    /// Where it begins in the VMM's address space.
    pub hva: u64,
    /// Where it begins in guest-physical memory.
    pub gpa: u64,
    /// Its size.
    pub bytes: u64,
}

/// A kind of machine, which says where memory is below 4 GiB and from where on it is above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// `pc`: up to 3.5 GiB lie below; more than that puts 3 GiB below (hw/i386/pc_piix.c).
    Pc,
    /// `q35`: up to 2.75 GiB lie below; more than that puts 2 GiB below (hw/i386/pc_q35.c).
    Q35,
    /// `microvm`: 3 GiB lie below (hw/i386/microvm.c).
    Microvm,
}

/// Why guest RAM was not found.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RamError {
    /// There is no command line like QEMU's.
    #[error("its command line does not begin with a qemu-system program")]
    NotQemu,
    /// `-m` cannot be understood.
    #[error("`-m {0}` of its command line is no size")]
    Size(String),
    /// No mapping is of that size.
    #[error(
        "`-m` says {wanted} bytes, and no writable mapping has that size; the largest: {found}"
    )]
    NoMapping {
        /// Bytes of RAM.
        wanted: u64,
        /// What there is.
        found: String,
    },
}

impl Machine {
    /// Where `bytes` of RAM are: guest-physical address, offset in RAM, bytes.
    fn pieces(self, bytes: u64) -> Vec<(u64, u64, u64)> {
        let low = match self {
            Self::Pc if bytes >= 0xe000_0000 => 3 * GIB,
            Self::Q35 if bytes >= 0xb000_0000 => 2 * GIB,
            Self::Microvm => 3 * GIB,
            Self::Pc | Self::Q35 => bytes,
        };
        let low = low.min(bytes);
        let mut pieces = vec![(0, 0, low)];
        pieces.extend((bytes > low).then_some((HIGH, low, bytes - low)));
        pieces
    }

    fn of(command_line: &[String]) -> Self {
        let value = option(command_line, &["-machine", "-M"]).unwrap_or_default();
        let kind = value.split(',').next().unwrap_or_default();
        let kind = kind.strip_prefix("type=").unwrap_or(kind);
        match kind {
            k if k.contains("q35") => Self::Q35,
            k if k.starts_with("microvm") => Self::Microvm,
            _ => Self::Pc,
        }
    }
}

/// The value of the last of these options.
fn option<'a>(words: &'a [String], names: &[&str]) -> Option<&'a str> {
    let is = |w: &String| {
        let single = w.strip_prefix('-').filter(|w| w.starts_with('-'));
        names.contains(&w.as_str()) || single.is_some_and(|w| names.contains(&w))
    };
    let at = words.iter().rposition(is)?;
    words.get(at + 1).map(String::as_str)
}

/// `4G`, `size=4096`, `512M,slots=2,maxmem=8G`; without a unit it is MiB.
fn size(text: &str) -> Option<u64> {
    let first = text.split(',').next()?;
    let value = first.strip_prefix("size=").unwrap_or(first);
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match value[digits.len()..].to_ascii_lowercase().as_str() {
        "b" => 0,
        "k" => 10,
        "" | "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // QEMU rounds up to 8 KiB.
    bytes.checked_next_multiple_of(8192)
}

/// Neighbouring writable mappings of the same thing as one: `madvise` cuts mappings.
/// Start, end, what is resident.
fn writable(regions: &[Region]) -> Vec<(u64, u64, u64)> {
    let mut joined: Vec<(u64, u64, u64)> = Vec::new();
    let mut last: Option<&Region> = None;
    for region in regions.iter().filter(|r| r.permissions.starts_with("rw")) {
        if region.name.starts_with('[') {
            continue;
        }
        // Two mappings of the same file may be neighbours, too.
        let follows = |l: &Region| l.name.is_empty() || region.offset == l.offset + l.bytes();
        let goes_on = |l: &Region| {
            l.end == region.start
                && l.name == region.name
                && l.permissions == region.permissions
                && follows(l)
        };
        match joined.last_mut().filter(|_| last.is_some_and(goes_on)) {
            Some((_, end, resident)) => {
                *end = region.end;
                *resident += region.resident();
            }
            None => joined.push((region.start, region.end, region.resident())),
        }
        last = Some(region);
    }
    joined
}

/// Finds guest RAM by QEMU's command line: the writable mapping of the size that `-m` says, at the
/// guest-physical addresses that the machine gives it.
///
/// # Errors
/// It is no QEMU, or there is no mapping of that size.
pub fn guest_ram(command_line: &[String], regions: &[Region]) -> Result<Vec<RamPiece>, RamError> {
    let program = command_line.first().map(String::as_str).unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    if !program.starts_with("qemu-system") && !program.starts_with("qemu-kvm") && program != "kvm" {
        return Err(RamError::NotQemu);
    }
    let wanted = match option(command_line, &["-m"]) {
        None => DEFAULT_RAM,
        Some(text) => size(text).filter(|b| *b > 0).ok_or_else(|| RamError::Size(text.into()))?,
    };
    let mappings = writable(regions);
    // A device or a plugin may have a mapping of its own of the same memory: it has touched less of it.
    let fitting = mappings.iter().rev().filter(|(start, end, _)| end - start == wanted);
    let Some(&(hva, ..)) = fitting.max_by_key(|(_, _, resident)| *resident) else {
        let mut largest: Vec<_> = mappings.iter().map(|(s, e, _)| (e - s, *s)).collect();
        largest.sort_unstable_by(|a, b| b.cmp(a));
        let told = largest.iter().take(3).map(|(bytes, start)| format!("{start:#x}:{bytes}"));
        let found = told.collect::<Vec<_>>().join(", ");
        return Err(RamError::NoMapping { wanted, found });
    };
    let pieces = Machine::of(command_line).pieces(wanted).into_iter();
    Ok(pieces.map(|(gpa, at, bytes)| RamPiece { hva: hva + at, gpa, bytes }).collect())
}

/// Of the runs of a VMM's process those of guest RAM, by guest-physical page number: the host's
/// dimension. Permissions of the mapping are not those of the guest: tags are 0.
pub fn host_runs(process: &RunSet, ram: &[RamPiece]) -> RunSet {
    let mut host = RunSet::new();
    for piece in ram {
        let first = piece.hva / PAGE_BYTES;
        for run in process.within(first, piece.bytes / PAGE_BYTES) {
            host.map(piece.gpa / PAGE_BYTES + (run.from - first), run.to, run.pages, 0);
        }
    }
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn region(start: u64, bytes: u64, permissions: &str, name: &str) -> Region {
        Region {
            start,
            end: start + bytes,
            permissions: permissions.into(),
            name: name.into(),
            ..Region::default()
        }
    }

    const AT: u64 = 0x7f00_0000_0000;

    #[test]
    fn ram_is_the_mapping_of_its_size() {
        let regions = [
            region(0x1000, 8 * GIB, "r--p", ""),
            region(AT, GIB, "rw-p", ""),
            region(AT + GIB, 4 * GIB, "rw-p", ""),
            region(AT + 6 * GIB, GIB, "rw-s", "/memfd:x (deleted)"),
        ];
        let find = |line: &str| guest_ram(&words(line), &regions);
        let piece = |hva, gpa, bytes| RamPiece { hva, gpa, bytes };
        // Cut by madvise, and joined again.
        assert_eq!(
            find("/usr/bin/qemu-system-x86_64 -m 5G"),
            Ok(vec![piece(AT, 0, 3 * GIB), piece(AT + 3 * GIB, HIGH, 2 * GIB)])
        );
        assert_eq!(
            find("qemu-system-x86_64 -M q35,accel=kvm -m size=5120,slots=2"),
            Ok(vec![piece(AT, 0, 2 * GIB), piece(AT + 2 * GIB, HIGH, 3 * GIB)])
        );
        assert_eq!(find("qemu-kvm --m 1073741824B"), Ok(vec![piece(AT + 6 * GIB, 0, GIB)]));
        assert_eq!(
            find("qemu-system-x86_64 -m 2,5G"),
            Err(RamError::NoMapping {
                wanted: 2 << 20,
                found: format!("{AT:#x}:{}, {:#x}:{}", 5 * GIB, AT + 6 * GIB, GIB),
            })
        );
        assert_eq!(find("qemu-system-x86_64 -m many"), Err(RamError::Size("many".into())));
        assert_eq!(find("qemu-system-x86_64 -m"), find("qemu-system-x86_64 -m 128"));
        assert_eq!(find("redis-server -m 5G"), Err(RamError::NotQemu));
        assert_eq!(guest_ram(&[], &regions), Err(RamError::NotQemu));
    }

    #[test]
    fn of_two_mappings_of_ram_the_one_in_use_is_taken() {
        let mut regions =
            [0, 2, 4].map(|i| region(AT + i * GIB, GIB, "rw-s", "/dev/shm/ram")).to_vec();
        regions[1].rss = 1 << 20;
        let find = |regions: &[Region]| {
            guest_ram(&words("qemu-system-x86_64 -m 1G"), regions).unwrap()[0].hva
        };
        assert_eq!(find(&regions), AT + 2 * GIB);
        regions[2].rss = 2 << 20;
        assert_eq!(find(&regions), AT + 4 * GIB);
        // Neighbours that begin anew in the file are two; those that go on in it are one.
        let mut regions =
            [0, 1].map(|i| region(AT + i * GIB, GIB, "rw-s", "/dev/shm/ram")).to_vec();
        assert_eq!(find(&regions), AT);
        regions[1].offset = GIB;
        assert!(guest_ram(&words("qemu-system-x86_64 -m 1G"), &regions).is_err());
    }

    #[test]
    fn the_gap_is_where_machines_have_it() {
        assert_eq!(Machine::Pc.pieces(0xe000_0000 - 4096).len(), 1);
        assert_eq!(Machine::Pc.pieces(0xe000_0000)[1], (HIGH, 3 * GIB, GIB / 2));
        assert_eq!(Machine::Q35.pieces(0xb000_0000 - 4096).len(), 1);
        assert_eq!(Machine::Q35.pieces(0xb000_0000)[1], (HIGH, 2 * GIB, 0x3000_0000));
        assert_eq!(Machine::Microvm.pieces(3 * GIB), [(0, 0, 3 * GIB)]);
        assert_eq!(Machine::Microvm.pieces(4 * GIB).len(), 2);
    }

    #[test]
    fn runs_of_ram_have_guest_physical_numbers() {
        let mut process = RunSet::new();
        process.map(AT / PAGE_BYTES - 10, 5000, 30, 3);
        process.map(AT / PAGE_BYTES + 100, 9000, 1000, 3);
        let ram = [
            RamPiece { hva: AT, gpa: 0, bytes: 200 * PAGE_BYTES },
            RamPiece { hva: AT + 200 * PAGE_BYTES, gpa: HIGH, bytes: 100 * PAGE_BYTES },
        ];
        let found: Vec<_> =
            host_runs(&process, &ram).iter().map(|r| (r.from, r.to, r.pages)).collect();
        assert_eq!(found, [(0, 5010, 20), (100, 9000, 100), (1 << 20, 9100, 100)]);
    }
}
