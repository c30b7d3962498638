//! LZ4 frames, one after the other, with an end that is checked.
//!
//! The library's decoder (0.14) ends a stream that was cut off between two blocks of a frame as if it
//! were whole, and ends after each frame. So the bytes that it takes are watched here: a frame is whole
//! if its last bytes are the end mark, four zeros, with the checksum of its content behind them if its
//! descriptor announces one (LZ4 frame format 1.6.4).

use lz4_flex::frame::FrameDecoder;
use std::io::{self, Read};

/// Magic number of the format before frames had an end mark.
const LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Bit of the descriptor's first byte: a checksum of the content follows the end mark.
const CONTENT_CHECKSUM: u8 = 0x04;

/// What was read of the current frame.
struct Watched<R> {
    inner: R,
    /// Its first five bytes: the magic number and the descriptor's first byte.
    head: [u8; 5],
    /// Its last eight bytes.
    tail: [u8; 8],
    bytes: u64,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        let new = &buf[..n];
        if let Some(head) = self.head.get_mut(self.bytes as usize..) {
            let some = head.len().min(n);
            head[..some].copy_from_slice(&new[..some]);
        }
        let last = &new[n.saturating_sub(8)..];
        self.tail.rotate_left(last.len());
        self.tail[8 - last.len()..].copy_from_slice(last);
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<R> Watched<R> {
    fn is_whole(&self) -> bool {
        let checksum = self.head[4] & CONTENT_CHECKSUM != 0;
        let mark = if checksum { &self.tail[..4] } else { &self.tail[4..] };
        self.head.starts_with(&LEGACY) || mark == [0; 4]
    }
}

/// Decompresses frames until there are no more.
pub(crate) struct Lz4<R: Read>(FrameDecoder<Watched<R>>);

impl<R: Read> Lz4<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self(FrameDecoder::new(Watched { inner, head: [0; 5], tail: [0; 8], bytes: 0 }))
    }
}

impl<R: Read> Read for Lz4<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.0.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            // The decoder has come to the end of a frame, or to that of the file.
            let watched = self.0.get_mut();
            if watched.bytes == 0 {
                return Ok(0);
            }
            if !watched.is_whole() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (watched.bytes, watched.head, watched.tail) = (0, [0; 5], [0xff; 8]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    use std::io::Write;

    fn data() -> Vec<u8> {
        (0..200_000_u32).map(|i| (i / 7 % 300 * i / 1000) as u8).collect()
    }

    fn frame(data: &[u8], checksum: bool, mode: BlockMode) -> Vec<u8> {
        let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(mode);
        let mut out = FrameEncoder::with_frame_info(info.content_checksum(checksum), Vec::new());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn decode(bytes: &[u8]) -> (Vec<u8>, io::Result<()>) {
        let (mut all, mut some) = (Vec::new(), vec![0; 10_000]);
        let mut lz4 = Lz4::new(bytes);
        loop {
            match lz4.read(&mut some) {
                Ok(0) => return (all, Ok(())),
                Ok(n) => all.extend(&some[..n]),
                Err(e) => return (all, Err(e)),
            }
        }
    }

    #[test]
    fn frames_follow_one_another_and_none_ends_early() {
        let data = data();
        for mode in [BlockMode::Independent, BlockMode::Linked] {
            let first = frame(&data, true, mode);
            let second = frame(&data[5..], false, mode);
            let both = [&first[..], &second].concat();
            let (found, end) = decode(&both);
            assert!(end.is_ok() && found == [&data[..], &data[5..]].concat(), "{mode:?}");
            for cut in (1..both.len()).step_by(97).chain(first.len() - 9..first.len() + 9) {
                let (found, end) = decode(&both[..cut]);
                assert!([&data[..], &data[5..]].concat().starts_with(&found));
                assert_eq!(end.is_ok(), cut == first.len(), "{mode:?}, cut at {cut}");
            }
        }
    }

    #[test]
    fn a_cut_between_blocks_is_found() {
        // The length of the first block is behind the descriptor; the cut is behind the block.
        let whole = frame(&data(), false, BlockMode::Independent);
        let length = u32::from_le_bytes(whole[7..11].try_into().unwrap()) & 0x7fff_ffff;
        let (found, end) = decode(&whole[..11 + length as usize]);
        assert_eq!(found.len(), 64 << 10);
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
