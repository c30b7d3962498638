//! Which instructions matter to translation, told from their bytes when QEMU translates them.
//!
//! Intel SDM vol. 2: instruction formats (chapter 2), MOV to and from control registers, INVLPG, LIDT.

/// What an instruction does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// MOV to CR0 from the register of that number.
    Cr0(u8),
    /// MOV to CR3.
    Cr3(u8),
    /// MOV to CR4.
    Cr4(u8),
    /// INVLPG of the operand's address.
    InvalidatePage(Operand),
    /// LIDT from the operand.
    LoadIdt(Operand),
    /// The marker instruction with that number: `nopl 0xf5a000NN(%rax)`, which does nothing.
    Mark(u8),
}

/// A memory operand: `base + index << scale + displacement`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operand {
    /// Number of the base register; 16 is the address of the next instruction.
    pub base: Option<u8>,
    /// Number of the index register and the scale's exponent.
    pub index: Option<(u8, u8)>,
    /// Displacement.
    pub displacement: i64,
    /// Segment override: 4 for FS, 5 for GS.
    pub segment: Option<u8>,
}

/// Base register of an address relative to the next instruction.
pub const NEXT: u8 = 16;

/// What the instruction does, if it matters. 64-bit mode is assumed.
pub fn decode(bytes: &[u8]) -> Option<What> {
    let (mut rex, mut segment, mut at) = (0, None, 0);
    loop {
        match *bytes.get(at)? {
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e => rex = 0,
            0x64 => (segment, rex) = (Some(4), 0),
            0x65 => (segment, rex) = (Some(5), 0),
            b @ 0x40..=0x4f => rex = b,
            _ => break,
        }
        at += 1;
    }
    if bytes[at] != 0x0f {
        return None;
    }
    let (opcode, modrm) = (*bytes.get(at + 1)?, *bytes.get(at + 2)?);
    let register = modrm >> 3 & 7;
    let low = modrm & 7 | (rex & 1) << 3;
    match (opcode, register) {
        (0x22, 0) if rex & 4 == 0 => Some(What::Cr0(low)),
        (0x22, 3) if rex & 4 == 0 => Some(What::Cr3(low)),
        (0x22, 4) if rex & 4 == 0 => Some(What::Cr4(low)),
        (0x01, 7) if modrm >> 6 != 3 => {
            Some(What::InvalidatePage(operand(bytes, at + 2, rex, segment)?))
        }
        (0x01, 3) if modrm >> 6 != 3 => Some(What::LoadIdt(operand(bytes, at + 2, rex, segment)?)),
        (0x1f, 0) => match *bytes.get(at + 2..at + 7)? {
            [0x80, number, 0, 0xa0, 0xf5] => Some(What::Mark(number)),
            _ => None,
        },
        _ => None,
    }
}

/// The memory operand whose `ModRM` byte is at `at` (SDM vol. 2, tables 2-2 and 2-3).
fn operand(bytes: &[u8], at: usize, rex: u8, segment: Option<u8>) -> Option<Operand> {
    let modrm = *bytes.get(at)?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let mut base = Some(rm | (rex & 1) << 3);
    let mut index = None;
    let mut next = at + 1;
    if rm == 4 {
        let sib = *bytes.get(next)?;
        next += 1;
        let number = sib >> 3 & 7 | (rex & 2) << 2;
        index = (number != 4).then_some((number, sib >> 6));
        base = Some(sib & 7 | (rex & 1) << 3);
        if sib & 7 == 5 && mode == 0 {
            base = None;
        }
    } else if rm == 5 && mode == 0 {
        base = Some(NEXT);
    }
    let wide = mode == 2 || mode == 0 && (base.is_none() || base == Some(NEXT));
    let displacement = if mode == 1 {
        i64::from(*bytes.get(next)? as i8)
    } else if wide {
        let four = bytes.get(next..next + 4)?;
        i64::from(i32::from_le_bytes([four[0], four[1], four[2], four[3]]))
    } else {
        0
    };
    Some(Operand { base, index, displacement, segment })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand_of(bytes: &[u8]) -> Operand {
        match decode(bytes) {
            Some(What::InvalidatePage(o) | What::LoadIdt(o)) => o,
            other => panic!("{other:?}"),
        }
    }

    // Bytes as the GNU assembler encodes them.
    #[test]
    fn instructions_are_told_from_their_bytes() {
        assert_eq!(decode(&[0x0f, 0x22, 0xd8]), Some(What::Cr3(0))); // mov %rax,%cr3
        assert_eq!(decode(&[0x41, 0x0f, 0x22, 0xdc]), Some(What::Cr3(12))); // mov %r12,%cr3
        assert_eq!(decode(&[0x0f, 0x22, 0xe7]), Some(What::Cr4(7))); // mov %rdi,%cr4
        assert_eq!(decode(&[0x0f, 0x22, 0xc2]), Some(What::Cr0(2))); // mov %rdx,%cr0
        assert_eq!(decode(&[0x44, 0x0f, 0x22, 0xc0]), None); // mov %rax,%cr8
        assert_eq!(decode(&[0x0f, 0x20, 0xd8]), None); // mov %cr3,%rax
        assert_eq!(decode(&[0x0f, 0x1f, 0x80, 7, 0, 0xa0, 0xf5]), Some(What::Mark(7)));
        assert_eq!(decode(&[0x0f, 0x1f, 0x80, 0, 0, 0, 0]), None); // a nop of seven bytes
        assert_eq!(decode(&[0x0f, 0x01, 0xf8]), None); // swapgs
        assert_eq!(decode(&[0x90]), None);
        assert_eq!(decode(&[0x0f]), None);
    }

    #[test]
    fn operands_are_read() {
        let plain = |base, displacement| Operand { base, index: None, displacement, segment: None };
        assert_eq!(operand_of(&[0x0f, 0x01, 0x38]), plain(Some(0), 0)); // invlpg (%rax)
        assert_eq!(operand_of(&[0x41, 0x0f, 0x01, 0x3c, 0x24]), plain(Some(12), 0)); // (%r12)
        assert_eq!(operand_of(&[0x0f, 0x01, 0x7f, 0xf8]), plain(Some(7), -8)); // -8(%rdi)
        assert_eq!(operand_of(&[0x0f, 0x01, 0xbf, 0, 0x10, 0, 0]), plain(Some(7), 4096));
        assert_eq!(operand_of(&[0x0f, 0x01, 0x1d, 1, 2, 0, 0]), plain(Some(NEXT), 0x201)); // lidt
        let scaled = Operand { index: Some((9, 3)), ..plain(Some(8), 0) };
        assert_eq!(operand_of(&[0x43, 0x0f, 0x01, 0x3c, 0xc8]), scaled); // (%r8,%r9,8)
        let absolute = Operand { base: None, ..plain(None, 0x1000) };
        assert_eq!(operand_of(&[0x0f, 0x01, 0x3c, 0x25, 0, 0x10, 0, 0]), absolute);
        let gs = Operand { segment: Some(5), ..plain(Some(0), 0) };
        assert_eq!(operand_of(&[0x65, 0x0f, 0x01, 0x38]), gs);
    }
}
