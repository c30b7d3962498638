//! Damaged, cut and foreign trace files: an error that says where, or what was sound, and never a
//! panic or more memory than the file is worth.

use nestwalk_source::trace::{Header, Summary, TraceReader, TraceWriter, WriteOptions};
use nestwalk_source::{Format, open};
use nestwalk_types::{
    Batch, Control, Gpa, Gva, PageSize, Run, RunFlags, Source, SourceError, VcpuId,
};
use std::io::{Cursor, Write};
use std::sync::{Arc, Mutex};

const OPTIONS: WriteOptions =
    WriteOptions { chunk_runs: 120, level: 3, line_addresses: true, thread: false };

/// A little of everything: loops with strides, a table, writes to it.
fn sample() -> Batch {
    let mut batch = Batch::default();
    let mut entries = Box::new([0; 512]);
    entries[3] = 0x5067;
    entries[4] = 0x6067;
    let (vcpu, gpa) = (VcpuId(0), Gpa::new(0x4000));
    batch.controls.push((0, Control::TableAdded { vcpu, gpa, entries: Some(entries) }));
    batch.controls.push((0, Control::RegionOfInterest));
    for i in 0..400_u64 {
        let fetch = i % 3 == 0;
        let gva = if fetch { 0x40_0000 + i % 9 * 64 } else { 0x7fff_0000_0000 + i * 192 % 0x7000 };
        batch.runs.push(Run {
            gva: Gva::new(gva & !63),
            pc: Gva::new(0x40_0000 + i % 9 * 64),
            lines: (1 << (gva >> 6 & 63)) | (i % 5),
            count: 3 + (i % 4) as u16,
            instructions: if fetch { 20 } else { 0 },
            vcpu,
            flags: if fetch { RunFlags::FETCH } else { RunFlags::STORE },
        });
        if i % 40 == 0 {
            let write = Control::TableWrite { vcpu, gpa: Gpa::new(0x4000 + i / 5), value: i << 12 };
            batch.controls.push((batch.runs.len() as u32, write));
            let size = PageSize::SIZE_2M;
            let cleared = Control::PageCleared { vcpu, gpa: Gpa::new(i << 21), size };
            batch.controls.push((batch.runs.len() as u32, cleared));
        }
    }
    batch
}

fn header() -> Header {
    Header { memory_bytes: 1 << 30, vcpus: 1, paging: "4-level".into(), ..Header::default() }
}

fn sample_bytes() -> Vec<u8> {
    let mut writer = TraceWriter::new("sample", Vec::new(), &header(), OPTIONS).unwrap();
    writer.write(&sample()).unwrap();
    let summary = Summary { exit_status: Some(3), ..Summary::default() };
    let written = writer.finish(summary).unwrap();
    assert_eq!(written.bytes, written.out.len() as u64);
    assert!(written.chunks > 3, "{}", written.chunks);
    written.out
}

/// What a file says, all of it, and how it ends.
#[derive(Debug, PartialEq)]
struct Content {
    header: Header,
    runs: Vec<Run>,
    controls: Vec<(u64, Control)>,
    summary: Option<Summary>,
    end: Result<(), SourceError>,
}

fn read(bytes: &[u8]) -> Result<Content, SourceError> {
    let mut reader = TraceReader::new("sample", Cursor::new(bytes))?;
    let (mut runs, mut controls) = (Vec::new(), Vec::new());
    let mut batch = Batch::default();
    let end = loop {
        match reader.next_batch(&mut batch) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => {
                assert!(batch.is_empty(), "something comes with an error");
                assert_eq!(reader.next_batch(&mut batch), Err(error.clone()), "an error stays");
                break Err(error);
            }
        }
        let base = runs.len() as u64;
        controls.extend(batch.controls.drain(..).map(|(p, c)| (base + u64::from(p), c)));
        runs.append(&mut batch.runs);
    };
    let header = reader.header().clone();
    Ok(Content { header, runs, controls, summary: reader.summary().cloned(), end })
}

/// Whether what was read is the beginning of what was written.
#[track_caller]
fn assert_prefix(read: &Content, whole: &Content) {
    assert!(whole.runs.starts_with(&read.runs), "other runs");
    assert!(whole.controls.starts_with(&read.controls), "other controls");
    assert_eq!(read.header, whole.header);
}

#[test]
fn what_was_written_is_read() {
    let bytes = sample_bytes();
    let whole = read(&bytes).unwrap();
    assert_eq!(whole.end, Ok(()));
    assert_eq!(whole.runs, sample().runs);
    let controls: Vec<_> = sample().controls.into_iter().map(|(p, c)| (u64::from(p), c)).collect();
    assert_eq!(whole.controls, controls);
    assert_eq!(whole.summary.unwrap().exit_status, Some(3));
    let reader = TraceReader::new("sample", Cursor::new(&bytes)).unwrap();
    let totals = reader.totals().unwrap();
    assert_eq!(totals.accesses, sample().accesses());
    assert_eq!(totals.accesses_of_interest, sample().accesses());
    assert_eq!(totals.instructions, sample().instructions());
    assert_eq!(totals.controls_by_kind["table_write"], 10);
    assert_eq!(reader.info().total, Some(sample().accesses()));
    assert!(reader.info().approximations.is_empty());
    assert_eq!(reader.info().guest.unwrap().memory_bytes, 1 << 30);
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let bytes = sample_bytes();
    let whole = read(&bytes).unwrap();
    let mut told = 0;
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        match read(&damaged) {
            Err(error) => {
                assert!(error.message.contains("byte"), "byte {at}: {error}");
                told += 1;
            }
            Ok(content) => {
                assert_prefix(&content, &whole);
                let error = content.end.expect_err("a flipped bit went unnoticed");
                assert!(error.message.contains(" at byte "), "byte {at}: {error}");
                assert!(error.message.contains("chunk "), "byte {at}: {error}");
            }
        }
    }
    // Magic number, version and header: without them nothing can be read.
    assert!(told > 200 && told < bytes.len() / 2, "{told} of {}", bytes.len());
}

#[test]
fn what_is_cut_off_anywhere_is_read_up_to_its_last_chunk() {
    let bytes = sample_bytes();
    let whole = read(&bytes).unwrap();
    let reader = TraceReader::new("sample", Cursor::new(&bytes)).unwrap();
    let mut ends: Vec<u64> = reader.chunks()[1..].iter().map(|c| c.offset).collect();
    let first = reader.chunks()[0].offset;
    let last = reader.chunks().last().unwrap();
    ends.push(bytes.len() as u64);
    for length in 0..bytes.len() {
        match read(&bytes[..length]) {
            Err(error) => {
                assert!((length as u64) < first, "{length}: {error}");
                assert!(!error.message.is_empty());
            }
            Ok(content) => {
                assert_prefix(&content, &whole);
                assert_eq!(content.end, Ok(()), "{length}");
                let chunks = ends.iter().filter(|&&end| end <= length as u64).count();
                let runs = reader.chunks()[..chunks].iter().map(|c| c.held.runs).sum::<u64>();
                let runs = if content.runs.len() as u64 == runs + last.held.runs {
                    // The last chunk ends where the index begins.
                    runs + last.held.runs
                } else {
                    runs
                };
                assert_eq!(content.runs.len() as u64, runs, "{length}");
                let cut = TraceReader::new("sample", Cursor::new(&bytes[..length])).unwrap();
                let note = cut.info().approximations.join(" ");
                assert_eq!(cut.is_complete(), note.is_empty(), "{length}: {note}");
            }
        }
    }
}

#[test]
fn a_chunk_that_is_damaged_is_named_and_the_next_can_be_read() {
    let mut bytes = sample_bytes();
    let whole = read(&bytes).unwrap();
    let chunks = TraceReader::new("sample", Cursor::new(&bytes)).unwrap().chunks().to_vec();
    let at = chunks[1].offset as usize + 100;
    bytes[at] ^= 0x40;
    let content = read(&bytes).unwrap();
    assert_eq!(content.runs.len() as u64, chunks[0].held.runs);
    let message = content.end.unwrap_err().message;
    let place = format!("chunk 1 of {} at byte {}", chunks.len(), chunks[1].offset);
    assert!(message.starts_with(&place) && message.contains("checksum"), "{message}");
    let mut reader = TraceReader::new("sample", Cursor::new(&bytes)).unwrap();
    reader.seek_chunk(2).unwrap();
    let mut batch = Batch::default();
    assert_eq!(reader.next_batch(&mut batch), Ok(true));
    let first = chunks[2].first.runs as usize;
    assert_eq!(batch.runs, whole.runs[first..first + batch.runs.len()]);
    assert!(reader.seek_chunk(chunks.len() + 1).is_err());
}

/// A head of a block, with the checksum that it should have.
fn head(tag: [u8; 4], length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = tag.to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32fast::hash(payload).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// A file with this payload as its only chunk, all checksums right.
fn with_chunk(payload: &[u8]) -> Vec<u8> {
    let writer = TraceWriter::new("sample", Vec::new(), &header(), OPTIONS).unwrap();
    let empty = writer.finish(Summary::default()).unwrap().out;
    let at = empty.windows(4).position(|w| w == b"DONE").unwrap();
    let mut bytes = empty[..at].to_vec();
    bytes.extend(head(*b"CHNK", payload.len() as u32, payload));
    bytes.extend(payload);
    bytes
}

/// The payload of a chunk that begins the stream: what it holds, and columns as
/// `(number, raw length, bytes)`.
fn payload(held: [u64; 4], columns: &[(u8, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    held.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
    bytes.push(columns.len() as u8);
    for (number, raw, stored) in columns {
        bytes.push(*number);
        bytes.extend(raw.to_le_bytes());
        bytes.extend((stored.len() as u32).to_le_bytes());
    }
    columns.iter().for_each(|c| bytes.extend(c.2));
    bytes
}

#[test]
fn lengths_that_are_lies_are_not_believed() {
    let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 19).unwrap();
    let cases: [(&str, Vec<u8>); 9] = [
        ("too short", vec![0; 40]),
        ("no directory", payload([1, 1, 0, 0], &[])[..64].to_vec()),
        ("more than a chunk can", payload([1 << 40, 1 << 40, 0, 0], &[])),
        ("more than a chunk can", payload([0, 0, 0, u64::MAX], &[])),
        ("cannot be decoded", payload([1, 1, 0, 0], &[])),
        ("says that it has", payload([1, 1, 0, 0], &[(64, u32::MAX, b"x")])),
        ("in place of", payload([1, 1, 0, 0], &[(64, 1 << 10, &bomb)])),
        ("column `code` of runs", payload([1, 1, 0, 0], &[(64, 77, b"nonsense")])),
        ("cut off", {
            let mut cut = payload([1, 1, 0, 0], &[(64, 500, b"abcd")]);
            cut.truncate(cut.len() - 1);
            cut
        }),
    ];
    for (words, payload) in cases {
        let content = match read(&with_chunk(&payload)) {
            Ok(content) => content,
            Err(error) => panic!("{words}: {error}"),
        };
        let message = content.end.expect_err(words).message;
        let named = message.contains(words) || message.contains("does not begin where");
        assert!(named && message.contains("chunk 0"), "{words}: {message}");
    }
    // The smallest chunk that is right: one run of the first site, told as new (3 in the table of
    // sites), at the line of its address 0 (7 << 2), with one line and a count of 1.
    let code = 3 | 7 << 2;
    let right =
        payload([1, 1, 0, 0], &[(64, 1, &[code]), (66, 1, &[3]), (69, 1, &[0]), (70, 1, &[0])]);
    let content = read(&with_chunk(&right)).unwrap();
    assert_eq!((content.end, content.runs.len()), (Ok(()), 1));
    // A number in it that is not that of a site.
    let wrong =
        payload([1, 1, 0, 0], &[(64, 1, &[code]), (66, 1, &[255]), (68, 4, &[200, 0, 0, 0])]);
    assert!(read(&with_chunk(&wrong)).unwrap().end.is_err());
}

#[test]
fn foreign_files_and_other_versions_are_told_apart() {
    let message = |bytes: &[u8]| read(bytes).unwrap_err().message;
    assert!(message(b"").contains("not a trace of nestwalk"));
    assert!(message(&[0x28; 300]).contains("89 4e 57 54"));
    let bytes = sample_bytes();
    let mut later = bytes.clone();
    later[8] = 77;
    assert!(message(&later).contains("version 77"), "{}", message(&later));
    assert!(message(&bytes[..10]).contains("cut off"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.nwt");
    std::fs::write(&path, zstd::encode_all(bytes.as_slice(), 1).unwrap()).unwrap();
    let message = open(&path, None).err().unwrap().message;
    assert!(message.contains("compressed once more"), "{message}");
    std::fs::write(&path, &bytes).unwrap();
    let source = open(&path, None).unwrap();
    assert_eq!(source.info().guest.unwrap().paging, "4-level");
    assert_eq!("nestwalk".parse(), Ok(Format::NESTWALK));
}

#[test]
fn fields_of_later_versions_are_ignored_and_missing_ones_are_empty() {
    let bytes = sample_bytes();
    let length = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    for json in [r#"{"colour":"red","vcpus":3,"filter":{"data":{"sets":4,"ways":2}}}"#, "{}"] {
        let mut changed = bytes[..12].to_vec();
        changed.extend(head(*b"HEAD", json.len() as u32, json.as_bytes()));
        changed.extend(json.as_bytes());
        changed.extend(&bytes[28 + length..]);
        // The index has moved, so chunks are looked for, and the trailer would be wrong.
        changed.truncate(changed.len() - 16);
        let reader = TraceReader::new("sample", Cursor::new(&changed)).unwrap();
        assert_eq!(reader.header().vcpus, if json == "{}" { 0 } else { 3 });
        assert_eq!(reader.header().filter.data.ways, if json == "{}" { 0 } else { 2 });
        let before = TraceReader::new("sample", Cursor::new(&bytes)).unwrap();
        assert_eq!(reader.chunks().len(), before.chunks().len());
        assert!(reader.is_complete() && reader.damage().is_none());
    }
}

/// A file whose bytes outlive the writer.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_is_killed_leaves_its_complete_chunks() {
    for thread in [false, true] {
        let kept = Kept::default();
        let options = WriteOptions { thread, ..OPTIONS };
        let mut writer = TraceWriter::new("kept", kept.clone(), &header(), options).unwrap();
        writer.write(&sample()).unwrap();
        // As a kill would: nothing of it runs any more.
        let before = std::time::Instant::now();
        let content = loop {
            let content = read(&kept.0.lock().unwrap()).unwrap();
            if content.runs.len() > 300 || before.elapsed().as_secs() > 10 {
                break content;
            }
        };
        std::mem::forget(writer);
        assert_eq!((content.end, content.summary), (Ok(()), None));
        assert!(content.runs.len() > 300 && content.runs.len() < 400, "{}", content.runs.len());
        assert!(sample().runs.starts_with(&content.runs));
        // One that is dropped writes what it has.
        let kept = Kept::default();
        let mut writer = TraceWriter::new("kept", kept.clone(), &header(), options).unwrap();
        writer.write(&sample()).unwrap();
        drop(writer);
        let content = read(&kept.0.lock().unwrap()).unwrap();
        assert_eq!((content.runs, content.summary), (sample().runs, None));
    }
}

/// A disk that is full after so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_with_its_place() {
    for thread in [false, true] {
        let options = WriteOptions { thread, ..OPTIONS };
        let mut writer = TraceWriter::new("full", Full(2500), &header(), options).unwrap();
        let wrote = (0..50).try_for_each(|_| writer.write(&sample()));
        let result = wrote.and_then(|()| writer.finish(Summary::default()).map(drop));
        let message = result.unwrap_err().message;
        assert!(message.contains("cannot be written at byte"), "{message}");
    }
    assert!(TraceWriter::new("full", Full(20), &header(), OPTIONS).is_err());
    let missing = std::path::Path::new("/nonexistent/a.nwt");
    let error = TraceWriter::create(missing, &header(), OPTIONS).err().unwrap();
    assert!(error.to_string().contains("cannot be created"), "{error}");
}
