//! What formats of lines share: finding lines, counting those that are no records, and numbers.

use crate::decoder::{Decode, Step};
use nestwalk_types::{BatchBuilder, SourceInfo};

/// Longest line that may be a record, bytes.
const LONGEST: usize = 4096;

/// What a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    /// A record, even one that makes no access.
    Record,
    /// What the tracer writes beside records, or nothing.
    Comment,
    /// Something else.
    Other,
}

/// A format whose records are lines.
pub(crate) trait Lines: Send {
    /// A record, for messages.
    const EXAMPLE: &'static str;
    /// What writes such a file.
    const WRITER: &'static str;
    /// Takes in a line, without its end and the blanks around it.
    fn line(&mut self, line: &[u8], out: &mut BatchBuilder) -> Line;
    /// What to say of this source, as known so far.
    fn info(&self) -> SourceInfo;
}

/// The decoder of such a format.
#[derive(Default)]
pub(crate) struct LineDecoder<F> {
    format: F,
    records: u64,
    comments: u64,
    others: u64,
    /// Number of the first line that is no record and its beginning.
    first_other: Option<(u64, String)>,
    /// Inside a line that is too long for a record.
    skipping: bool,
    /// The last line has no end.
    no_newline: bool,
}

impl<F: Lines> LineDecoder<F> {
    fn lines(&self) -> u64 {
        self.records + self.comments + self.others
    }

    #[inline(always)]
    fn take(&mut self, line: &[u8], out: &mut BatchBuilder) {
        let line = trim(line);
        match self.format.line(line, out) {
            Line::Record => self.records += 1,
            Line::Comment => self.comments += 1,
            Line::Other => self.other(line),
        }
    }

    #[cold]
    #[inline(never)]
    fn other(&mut self, line: &[u8]) {
        if self.first_other.is_none() {
            let shown = String::from_utf8_lossy(&line[..line.len().min(40)]);
            self.first_other = Some((self.lines() + 1, shown.escape_debug().to_string()));
        }
        self.others += 1;
    }
}

impl<F: Lines> Decode for LineDecoder<F> {
    fn decode(&mut self, bytes: &[u8], _: u64, out: &mut BatchBuilder) -> Step {
        let mut used = 0;
        while !out.is_full() {
            let rest = &bytes[used..];
            match memchr::memchr(b'\n', rest) {
                Some(end) if self.skipping => {
                    self.skipping = false;
                    used += end + 1;
                }
                Some(end) => {
                    self.take(&rest[..end], out);
                    used += end + 1;
                }
                None if self.skipping => {
                    used = bytes.len();
                    break;
                }
                None if rest.len() > LONGEST => {
                    self.other(rest);
                    self.skipping = true;
                }
                None => break,
            }
        }
        Step { used, error: None }
    }

    fn finish(&mut self, rest: &[u8], offset: u64, out: &mut BatchBuilder) -> Result<(), String> {
        if !rest.is_empty() {
            self.take(rest, out);
            self.no_newline = true;
        }
        if self.records > 0 {
            return Ok(());
        }
        let end = offset + rest.len() as u64;
        let first = match &self.first_other {
            Some((line, text)) => format!(", of which number {line} is `{text}`"),
            None => String::new(),
        };
        Err(format!(
            "no record such as `{}` in {} lines and {end} bytes{first}; {} writes them",
            F::EXAMPLE,
            self.lines(),
            F::WRITER
        ))
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("records", self.records),
            ("comment lines", self.comments),
            ("other lines", self.others),
        ]
    }

    fn info(&self) -> SourceInfo {
        let mut info = self.format.info();
        if let Some((line, text)) = &self.first_other {
            info.approximations.push(format!(
                "{} lines are no records and were skipped, the first of them line {line}: `{text}`",
                self.others
            ));
        }
        if self.no_newline {
            info.approximations.push(CUT_LINE.into());
        }
        info
    }
}

/// What is said of a file whose last line has no end.
pub(crate) const CUT_LINE: &str = "the last line has no end; it was taken as it stands, and may have \
                                   been cut off";

/// Without blanks at both ends.
#[inline(always)]
pub(crate) fn trim(line: &[u8]) -> &[u8] {
    line.trim_ascii()
}

/// Value of a hexadecimal digit; 0xff for every other byte.
pub(crate) const DIGITS: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 16 {
        table[b"0123456789abcdef"[i] as usize] = i as u8;
        table[b"0123456789ABCDEF"[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// The hexadecimal number that `text` begins with, of 1 to 16 digits and with or without `0x`, and
/// what follows it.
#[inline(always)]
pub(crate) fn hex(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = match text {
        [b'0', b'x' | b'X', digits @ ..] => digits,
        _ => text,
    };
    let (mut value, mut n) = (0u64, 0);
    while let Some(&byte) = digits.get(n) {
        let digit = DIGITS[usize::from(byte)];
        if digit > 15 {
            break;
        }
        if n == 16 {
            return None;
        }
        value = value << 4 | u64::from(digit);
        n += 1;
    }
    (n > 0).then(|| (value, &digits[n..]))
}

/// The decimal number that `text` begins with, of 1 to 9 digits, and what follows it.
#[inline(always)]
pub(crate) fn decimal(text: &[u8]) -> Option<(u32, &[u8])> {
    let (mut value, mut n) = (0u32, 0);
    while let Some(byte @ b'0'..=b'9') = text.get(n) {
        if n == 9 {
            return None;
        }
        value = value * 10 + u32::from(byte - b'0');
        n += 1;
    }
    (n > 0).then(|| (value, &text[n..]))
}

/// What follows one blank or more; `None` if there is none.
#[inline(always)]
pub(crate) fn blanks(text: &[u8]) -> Option<&[u8]> {
    let rest = text.trim_ascii_start();
    (rest.len() < text.len()).then_some(rest)
}

/// Whether `text`, what follows a number, shows that the number ended there.
#[inline(always)]
pub(crate) fn ends(text: &[u8]) -> bool {
    text.first().is_none_or(u8::is_ascii_whitespace)
}

/// Whole lines of the start of a file, without blanks around them and without empty ones: what
/// detection looks at. The last one counts if the file may end there.
pub(crate) fn head_lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = match memchr::memrchr(b'\n', head) {
        Some(end) => end,
        None => head.len(),
    };
    head[..end].split(|&byte| byte == b'\n').map(trim).filter(|line| !line.is_empty())
}
