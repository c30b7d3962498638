//! Opening files: what is told by content, and what is said when nothing fits.

mod common;

use common::{collect, file, named};
use nestwalk_source::champsim::Instruction;
use nestwalk_source::{Format, Lackey, open};
use std::path::Path;

fn error(path: &Path) -> String {
    open(path, None).err().expect("an error").to_string()
}

#[test]
fn what_is_no_trace_is_refused_with_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let message = error(dir.path());
    assert!(message.contains("no drmemtrace in this directory"), "{message}");
    for format in Format::ALL.iter().copied().filter(|f| *f != named("drmemtrace")) {
        let message = open(dir.path(), Some(format)).err().expect("an error").to_string();
        assert!(message.contains("a directory; give a file"), "{message}");
    }
    let message = error(&dir.path().join("missing"));
    assert!(message.contains("no such file") && message.contains("missing"), "{message}");
    assert!(error(file(b"").path()).contains("an empty file"));
    let message = error(file(&[0x77; 4096]).path());
    for name in ["nestwalk", "lackey", "champsim", "drmemtrace", "--trace-format"] {
        assert!(message.contains(name), "{message}");
    }
    assert!(error(file(b"hello\nworld\n").path()).contains("12 bytes"));
}

#[test]
fn what_is_empty_is_called_that() {
    for format in Format::ALL.iter().copied().map(Some).chain([None]) {
        let message = |path: &Path| open(path, format).err().expect("an error").to_string();
        let null = message(Path::new("/dev/null"));
        assert_eq!(null, "/dev/null: empty; a trace has at least one record");
        for (name, data) in common::compressed(b"").into_iter().skip(1) {
            let message = message(file(&data).path());
            assert!(message.contains(": empty after decompression"), "{name}: {message}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, nothing) = common::compressed(b"").swap_remove(1);
    std::fs::write(dir.path().join("1.trace.gz"), nothing).unwrap();
    let message = open(dir.path(), Some(named("drmemtrace"))).err().unwrap().to_string();
    assert!(message.contains("1.trace.gz: empty after decompression"), "{message}");
    let message = Lackey::from_reader("a socket", std::io::empty()).err().unwrap().to_string();
    assert_eq!(message, "a socket: empty; a trace has at least one record");
}

#[test]
fn damage_behind_the_head_does_not_hide_the_format() {
    // The 4,096 bytes that detection looks at are whole records of ChampSim.
    let record = Instruction { ip: 0x40_0000, ..Instruction::default() }.to_bytes();
    let bad = [0xff; 64];
    let trace = [&record.repeat(64)[..], &bad, &record.repeat(64)].concat();
    for (name, data) in common::compressed(&trace) {
        let file = file(&data);
        let stream = collect(open(file.path(), None).expect(name).as_mut());
        assert_eq!(stream.instructions(), 64, "{name}");
        assert!(stream.message().contains("record 64 at byte 4096"), "{}", stream.message());
    }
    let trace = [&record.repeat(63)[..], &bad, &record.repeat(64)].concat();
    let message = error(file(&trace).path());
    assert!(message.contains("by its first 4096 bytes"), "{message}");
}

#[test]
fn a_magic_number_with_nonsense_behind_it_is_damage() {
    for magic in [
        &[0x1f, 0x8b][..],
        b"\xfd7zXZ\0",
        &[0x28, 0xb5, 0x2f, 0xfd],
        &[0x04, 0x22, 0x4d, 0x18],
        b"\xff\x06\0\0sNaPpY",
        b"BZh91AY&SY",
    ] {
        let data = [magic, &[0xa5; 200]].concat();
        let message = error(file(&data).path());
        assert!(message.contains("damaged") || message.contains("cut off"), "{message}");
    }
}

#[test]
fn each_format_is_told_by_its_content() {
    let record = Instruction { ip: 0x40_0000, ..Instruction::default() }.to_bytes();
    let header = [25, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
    let logs: [(&[u8], &str); 4] = [
        (b"I  04016b80,3\n L 1ffeffe7e,8\n", "lackey"),
        (b"==9== Lackey, an example Valgrind tool\n", "lackey"),
        (&record, "ChampSim"),
        (&header, "drmemtrace"),
    ];
    for (content, name) in logs {
        let file = file(content);
        let description = open(file.path(), None).unwrap().info().description;
        assert!(description.contains(name), "{description}");
    }
}

#[test]
fn formats_have_names() {
    for format in Format::ALL {
        assert_eq!(format.name().parse(), Ok(*format));
        assert!(!format.summary().is_empty());
    }
    let message = "pin".parse::<Format>().unwrap_err();
    assert!(
        message.contains("there are nestwalk, gem5, lackey, pinatrace, perf, dinero"),
        "{message}"
    );
}

#[test]
fn progress_ends_at_the_length_of_the_file() {
    let data: Vec<u8> = (1..50_000)
        .flat_map(|i| Instruction { ip: i * 64, ..Instruction::default() }.to_bytes())
        .collect();
    for (name, data) in common::compressed(&data) {
        let file = file(&data);
        let mut source = open(file.path(), None).unwrap();
        assert_eq!(source.info().total, Some(data.len() as u64), "{name}");
        collect(source.as_mut());
        assert_eq!(source.position(), data.len() as u64, "{name}");
    }
}

#[test]
fn a_pipe_is_read_like_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let data = Instruction { ip: 0x40_0000, ..Instruction::default() }.to_bytes().repeat(5000);
    let (_, packed) = common::compressed(&data).swap_remove(3);
    let writer = std::thread::spawn({
        let path = path.clone();
        move || std::fs::write(path, packed).unwrap()
    });
    let mut source = open(&path, None).unwrap();
    assert_eq!(source.info().total, None);
    assert_eq!(collect(source.as_mut()).instructions(), 5000);
    writer.join().unwrap();
}
