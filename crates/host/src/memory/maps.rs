//! Mappings of a process: `/proc/PID/smaps`, or `maps`, which has the same lines and no numbers.

/// What the program has asked for with madvise(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// `MADV_HUGEPAGE`.
    Huge,
    /// `MADV_NOHUGEPAGE`.
    NoHuge,
}

/// A mapping. Sizes are bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// `rwxp` or `rwxs`, with `-` for what is not allowed.
    pub permissions: String,
    /// Where in the file it begins.
    pub offset: u64,
    /// The file, or a name in brackets; empty if it has none.
    pub name: String,
    /// Whether the sizes below are known.
    pub measured: bool,
    /// Resident, without hugetlbfs.
    pub rss: u64,
    /// Of what is resident, used since references were cleared last, if ever.
    pub referenced: u64,
    /// Swapped out.
    pub swap: u64,
    /// Of what is resident, mapped by entries of the middle level: anonymous, shared or of a file.
    pub huge: u64,
    /// Of hugetlbfs, resident besides.
    pub hugetlb: u64,
    /// Size of its pages: that of hugetlbfs, or 4 KiB.
    pub page_bytes: u64,
    /// What was asked for about huge pages.
    pub advice: Option<Advice>,
    /// Pages that pagemap says are present.
    pub present: u64,
    /// Pages that pagemap says are swapped out.
    pub swapped: u64,
}

impl Region {
    /// Its size.
    pub const fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// All that is resident, by smaps.
    pub const fn resident(&self) -> u64 {
        self.rss + self.hugetlb
    }

    /// Permissions as the tag of a run: bits for r, w, x, shared.
    pub(crate) fn tag(&self) -> u16 {
        let bits = self.permissions.bytes().zip(*b"rwxs").enumerate();
        bits.map(|(i, (have, bit))| u16::from(have == bit) << i).sum()
    }
}

/// All mappings of a text.
///
/// # Errors
/// Number and text of the first line that is none.
pub(super) fn parse(text: &str) -> Result<Vec<Region>, (usize, String)> {
    let mut regions: Vec<Region> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if let Some((key, rest)) = line.split_once(':')
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && let Some(region) = regions.last_mut()
        {
            field(region, key, rest.trim());
            continue;
        }
        let region = heading(line).ok_or_else(|| (i + 1, line.chars().take(80).collect()))?;
        regions.push(region);
    }
    Ok(regions)
}

/// `7f0000000000-7f0000001000 rw-p 00000000 fe:00 1234   /name`.
fn heading(line: &str) -> Option<Region> {
    // The name may have blanks.
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let permissions = fields.next().filter(|p| p.len() == 4)?.to_owned();
    let offset = hex(fields.next()?)?;
    fields.next()?;
    fields.next()?;
    let name = fields.next().unwrap_or_default().trim().to_owned();
    let aligned = start.is_multiple_of(super::PAGE_BYTES) && end.is_multiple_of(super::PAGE_BYTES);
    (start < end && aligned).then_some(Region {
        start,
        end,
        permissions,
        offset,
        name,
        page_bytes: super::PAGE_BYTES,
        ..Region::default()
    })
}

/// `Rss:     12 kB`. What is not known is left out: kernels add lines.
fn field(region: &mut Region, key: &str, value: &str) {
    let bytes = || {
        let number = value.strip_suffix("kB")?.trim().parse::<u64>().ok()?;
        number.checked_mul(1024)
    };
    let bytes = bytes().unwrap_or(0);
    match key {
        "Rss" => (region.rss, region.measured) = (bytes, true),
        "Referenced" => region.referenced = bytes,
        "Swap" => region.swap = bytes,
        "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => region.huge += bytes,
        "Private_Hugetlb" | "Shared_Hugetlb" => region.hugetlb += bytes,
        "KernelPageSize" => region.page_bytes = bytes.max(super::PAGE_BYTES),
        "VmFlags" => {
            let has = |flag| value.split_whitespace().any(|f| f == flag);
            region.advice = match (has("hg"), has("nh")) {
                (true, _) => Some(Advice::Huge),
                (_, true) => Some(Advice::NoHuge),
                _ => None,
            };
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
Size:               4096 kB
KernelPageSize:        4 kB
Rss:                4092 kB
Referenced:          400 kB
AnonHugePages:      2048 kB
Swap:                  4 kB
THPeligible:           1
ProtectionKey:         0
VmFlags: rd wr mr mw me ac sd hg 
7f0000400000-7f0000401000 r-xs 00001000 fe:00 10199624                   /tmp/a file: b
";

    #[test]
    fn mappings_have_names_sizes_and_advice() {
        let regions = parse(TEXT).unwrap();
        assert_eq!(regions.len(), 2);
        let r = &regions[0];
        assert_eq!((r.bytes(), r.rss, r.huge, r.swap), (4 << 20, 4092 << 10, 2 << 20, 4096));
        assert_eq!(r.referenced, 400 << 10);
        assert_eq!((r.advice, r.tag(), r.measured), (Some(Advice::Huge), 0b0011, true));
        let r = &regions[1];
        assert_eq!((r.name.as_str(), r.offset), ("/tmp/a file: b", 0x1000));
        assert_eq!((r.tag(), r.measured, r.page_bytes), (0b1101, false, 4096));
    }

    #[test]
    fn what_is_no_mapping_is_refused_where_it_is() {
        for bad in [
            "7f00-7e00 rw-p 00000000 00:00 0",
            "Rss: 4 kB",
            "x",
            "1000-2000 rw 0 00:00 0",
            "1000-2001 rw-p 0 00:00 0",
            "1000-2000",
            "",
        ] {
            assert_eq!(parse(&format!("{bad}\n")), Err((1, bad.to_owned())));
        }
        assert_eq!(parse(&format!("{TEXT}nonsense")).unwrap_err().0, 12);
    }
}
