//! Readers whose types are forgotten.
//!
//! `dyn Read` has a table of ten functions, all of which are compiled for each type that becomes one,
//! called or not. Here a type brings only what it must, and the rest is compiled once.

use std::io::{self, Read, Seek, SeekFrom};

/// A reader: `Box<dyn Bytes>` and `&mut dyn Bytes` are [`Read`].
pub(crate) trait Bytes: Send {
    /// [`Read::read`].
    fn some(&mut self, buf: &mut [u8]) -> io::Result<usize>;
}

impl<R: Read + Send> Bytes for R {
    fn some(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read(buf)
    }
}

impl Read for dyn Bytes + '_ {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.some(buf)
    }
}

/// One that can go anywhere: `Box<dyn Anywhere>` and `&mut dyn Anywhere` are [`Read`] and [`Seek`].
pub(crate) trait Anywhere: Send {
    /// [`Read::read`].
    fn some(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    /// [`Seek::seek`].
    fn go(&mut self, to: SeekFrom) -> io::Result<u64>;
}

impl<R: Read + Seek + Send> Anywhere for R {
    fn some(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read(buf)
    }
    fn go(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.seek(to)
    }
}

impl Read for dyn Anywhere + '_ {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.some(buf)
    }
}

impl Seek for dyn Anywhere + '_ {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.go(to)
    }
}
