//! The little of ELF files that is needed here: sections by name and the interpreter's path.
//!
//! System V ABI, chapters 4 (sections) and 5 (program headers), for 64-bit little-endian files.

/// The contents of the section called `name`, if the file is well-formed and has it.
pub(crate) fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    is_elf64(file).then_some(())?;
    let (table, size) = (number::<8>(file, 0x28)?, number::<2>(file, 0x3a)?);
    let (count, names) = (number::<2>(file, 0x3c)?, number::<2>(file, 0x3e)?);
    let header = |index: u64| table.checked_add(index.checked_mul(size)?);
    let contents = |header: u64| {
        let field = |at| number::<8>(file, header.checked_add(at)?);
        bytes(file, field(0x18)?, field(0x20)?)
    };
    let names = contents(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let called = text(names, number::<4>(file, header)?)?;
        (called == name.as_bytes()).then(|| contents(header)).flatten()
    })
}

/// The path of the dynamic loader that the file asks for (`PT_INTERP`); a static program has none.
pub(crate) fn interpreter(file: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: u64 = 3;
    is_elf64(file).then_some(())?;
    let (table, size) = (number::<8>(file, 0x20)?, number::<2>(file, 0x36)?);
    (0..number::<2>(file, 0x38)?).find_map(|index| {
        let header = table.checked_add(index * size)?;
        if number::<4>(file, header)? != PT_INTERP {
            return None;
        }
        let offset = number::<8>(file, header.checked_add(8)?)?;
        text(file, offset)
    })
}

/// Whether the file is a 64-bit little-endian ELF file.
pub(crate) fn is_elf64(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF\x02\x01")
}

/// A little-endian number of `N` bytes, up to eight, at `offset`.
pub(crate) fn number<const N: usize>(file: &[u8], offset: u64) -> Option<u64> {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(bytes(file, offset, N as u64)?);
    Some(u64::from_le_bytes(wide))
}

/// `size` bytes at `offset`.
pub(crate) fn bytes(file: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    file.get(start..start.checked_add(usize::try_from(size).ok()?)?)
}

/// The text at `offset`, up to its NUL.
pub(crate) fn text(file: &[u8], offset: u64) -> Option<&[u8]> {
    file.get(usize::try_from(offset).ok()?..)?.split(|&byte| byte == 0).next()
}
