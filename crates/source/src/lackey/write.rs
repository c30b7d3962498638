//! Writing logs.

use super::text::PLAIN;
use crate::export::{Instruction, WriteRecords, Writing};
use std::io::{self, Write};

/// The first line says that no line is part of an atomic or a repeated instruction, if that is so.
pub(super) const WRITING: Writing = Writing {
    longest: 9999,
    ..Writing::new(|out, exact| {
        if exact {
            writeln!(out, "==1== {PLAIN}")?;
        }
        Ok(Box::new(Lines))
    })
};

struct Lines;

impl WriteRecords for Lines {
    fn instruction(&mut self, out: &mut dyn Write, written: &Instruction<'_>) -> io::Result<()> {
        if written.fetch {
            writeln!(out, "I  {:08x},{}", written.ip.address, written.ip.bytes)?;
        }
        for (kind, items) in [('L', written.loads), ('S', written.stores)] {
            for item in items {
                writeln!(out, " {kind} {:08x},{}", item.address, item.bytes)?;
            }
        }
        Ok(())
    }
}
