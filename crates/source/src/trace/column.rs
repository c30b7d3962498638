//! Columns of bytes: what one field of many events is written to, and read from.

/// Appends an unsigned number, 7 bits a byte, the lowest first (LEB128).
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A signed number as an unsigned one that is small if it is near 0.
#[inline]
pub(super) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[inline]
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A column that is read from the front.
///
/// Reading beyond its end gives zeros and is remembered, so that a decoder needs to look once per
/// batch instead of once per byte.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    bytes: Vec<u8>,
    at: usize,
    overrun: bool,
}

impl Cursor {
    pub(super) const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0, overrun: false }
    }
    #[inline(always)]
    pub(super) fn byte(&mut self) -> u8 {
        match self.bytes.get(self.at) {
            Some(&byte) => {
                self.at += 1;
                byte
            }
            None => {
                self.overrun = true;
                0
            }
        }
    }
    /// A number that [`put_varint`] wrote. Of one that is too long the upper bits are lost.
    #[inline(always)]
    pub(super) fn varint(&mut self) -> u64 {
        let first = self.byte();
        if first < 0x80 {
            return u64::from(first);
        }
        self.long_varint(u64::from(first & 0x7f))
    }
    #[inline(never)]
    fn long_varint(&mut self, mut value: u64) -> u64 {
        for shift in 1..10 {
            let byte = self.byte();
            value |= u64::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                return value;
            }
        }
        self.overrun = true;
        value
    }
    pub(super) fn u64(&mut self) -> u64 {
        let mut word = [0; 8];
        word.fill_with(|| self.byte());
        u64::from_le_bytes(word)
    }
    /// So many bytes; fewer if there are no more.
    pub(super) fn take(&mut self, bytes: usize) -> &[u8] {
        let rest = &self.bytes[self.at..];
        let taken = &rest[..bytes.min(rest.len())];
        self.overrun |= taken.len() < bytes;
        self.at += taken.len();
        taken
    }
    /// Whether more was read than there is.
    pub(super) const fn overrun(&self) -> bool {
        self.overrun
    }
    /// Whether everything was read, and no more.
    pub(super) fn is_finished(&self) -> bool {
        !self.overrun && self.at == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let mut values = vec![0, 1, 127, 128, 16_383, 16_384, u64::MAX, u64::MAX >> 1];
        values.extend((0..64).map(|bit| 1 << bit));
        let mut bytes = Vec::new();
        values.iter().for_each(|&v| put_varint(&mut bytes, v));
        let mut cursor = Cursor::new(bytes);
        assert!(values.iter().all(|&v| cursor.varint() == v));
        assert!(cursor.is_finished());
        for value in [0, 1, -1, i64::MAX, i64::MIN, 77, -78] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!((zigzag(-1), zigzag(1), zigzag(-2)), (1, 2, 3));
    }

    #[test]
    fn what_is_not_there_is_zero_and_noticed() {
        let mut cursor = Cursor::new(vec![5, 0x80]);
        assert_eq!((cursor.byte(), cursor.overrun()), (5, false));
        assert_eq!((cursor.varint(), cursor.overrun()), (0, true));
        let mut endless = Cursor::new(vec![0xff; 20]);
        endless.varint();
        assert!(endless.overrun());
        let mut short = Cursor::new(vec![1; 3]);
        assert_eq!((short.take(8).len(), short.overrun(), short.is_finished()), (3, true, false));
    }
}
