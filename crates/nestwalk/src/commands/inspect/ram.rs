//! The dimensions of a VM: where its RAM is, and what a guest's snapshot adds.

use super::report::{Dimension, Report};
use super::snapshot::Guest;
use anyhow::{Result, anyhow, bail};
use nestwalk_contiguity::compose;
use nestwalk_host::{Missing, PAGE_BYTES, ProcessMemory, RamError, RamPiece, guest_ram, host_runs};
use nestwalk_report::parse_bytes;

/// `ADDRESS:BYTES[:GPA]`; addresses are hexadecimal.
pub fn parse(text: &str) -> Result<RamPiece> {
    let parts: Vec<&str> = text.split(':').collect();
    let hex = |part: &str| {
        let digits = part.strip_prefix("0x").unwrap_or(part);
        u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
    };
    let (hva, size, gpa) = match parts.as_slice() {
        [address, size] => (hex(address), *size, Some(0)),
        [address, size, gpa] => (hex(address), *size, hex(gpa)),
        _ => (None, "", None),
    };
    let (Some(hva), Some(gpa)) = (hva, gpa) else {
        bail!("`{text}`: write ADDRESS:BYTES or ADDRESS:BYTES:GPA, as in 0x7f2a00000000:3GiB:0x0");
    };
    let bytes = parse_bytes(size).map_err(|e| anyhow!("`{text}`: {e}"))?;
    if [hva, gpa, bytes].iter().any(|n| !n.is_multiple_of(PAGE_BYTES)) || bytes == 0 {
        bail!("`{text}`: whole pages of 4 KiB are expected, and at least one");
    }
    if hva.checked_add(bytes).is_none() || gpa.checked_add(bytes).is_none() {
        bail!("`{text}`: that goes beyond the end of all addresses");
    }
    Ok(RamPiece { hva, gpa, bytes })
}

/// Adds the host's dimension of a VM, and with a guest's snapshot the guest's and both together.
///
/// # Errors
/// There is a snapshot of a guest, and its RAM is not found.
pub fn add_dimensions(
    report: &mut Report,
    process: &ProcessMemory,
    given: &[RamPiece],
    guest: Option<&Guest>,
) -> Result<()> {
    let regions: Vec<_> = report.mappings.iter().map(|m| m.region.clone()).collect();
    let ram = if given.is_empty() {
        match guest_ram(&process.command_line(), &regions) {
            Ok(ram) => ram,
            Err(RamError::NotQemu) if guest.is_none() => return Ok(()),
            Err(error) => {
                let remedy = "say where guest RAM is with --ram ADDRESS:BYTES[:GPA]";
                if guest.is_some() {
                    bail!("process {} ({}): {error}; {remedy}", process.pid, process.name);
                }
                report.missing.push(Missing {
                    what: "the host's dimension of guest RAM".into(),
                    why: error.to_string(),
                    remedy: remedy.into(),
                    fatal: false,
                });
                return Ok(());
            }
        }
    } else {
        given.to_vec()
    };
    check(&ram, report)?;
    let to = report.dimensions[0].spaces[1];
    report.dimensions[0].spaces = ["hVA", if report.hidden { to } else { "hPA" }];
    let host = host_runs(&report.dimensions[0].runs, &ram);
    if let Some(guest) = guest {
        report.dimensions.push(Dimension::new("guest", ["gVA", "gPA"], guest.runs.clone()));
        if !report.hidden {
            let both = compose(&guest.runs, &host);
            let without = guest.runs.pages() - both.pages();
            report.guest = Some((guest.name.clone(), guest.pid, without));
            report.dimensions.push(Dimension::new("host", ["gPA", "hPA"], host));
            report.dimensions.push(Dimension::new("both", ["gVA", "hPA"], both));
            return Ok(());
        }
        report.guest = Some((guest.name.clone(), guest.pid, 0));
    }
    let host_to = if report.hidden { "?" } else { "hPA" };
    report.dimensions.push(Dimension::new("host", ["gPA", host_to], host));
    Ok(())
}

/// Pieces must be mapped, and apart from each other.
fn check(ram: &[RamPiece], report: &Report) -> Result<()> {
    for (i, piece) in ram.iter().enumerate() {
        let text = format!("{:#x}:{}:{:#x}", piece.hva, piece.bytes, piece.gpa);
        let end = piece.hva + piece.bytes;
        let inside =
            |r: &nestwalk_host::Region| r.end.min(end).saturating_sub(r.start.max(piece.hva));
        let mapped: u64 = report.sum(|m| inside(&m.region));
        if mapped < piece.bytes && report.cut.is_none() {
            bail!(
                "--ram {text}: only {mapped} of these bytes are mapped in process {}; see its mappings \
                 with --all",
                report.pid
            );
        }
        let meets = |o: &&RamPiece| piece.gpa < o.gpa + o.bytes && o.gpa < piece.gpa + piece.bytes;
        if let Some(other) = ram[..i].iter().find(meets) {
            bail!(
                "--ram {text}: another piece has these guest-physical addresses, too: {:#x}:{}:{:#x}",
                other.hva,
                other.bytes,
                other.gpa
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_and_checked() {
        let piece = |hva, gpa, bytes| RamPiece { hva, gpa, bytes };
        assert_eq!(parse("0x7f0000000000:1GiB").unwrap(), piece(0x7f00_0000_0000, 0, 1 << 30));
        assert_eq!(parse("1000:8K:0x100000000").unwrap(), piece(0x1000, 1 << 32, 8192));
        for bad in [
            "",
            "1000",
            "x:4K",
            "1000:4K:",
            "1000:0",
            "1001:4K",
            "1000:5000",
            "1000:4K:1",
            "1:2:3:4",
            "+1000:4K",
            "fffffffffffff000:8K",
            "0:8K:fffffffffffff000",
            "1000:4 parsecs",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{bad}`: ")), "{error}");
        }
    }
}
