//! Kernels are unpacked from the boot protocol's file, and damage is reported with its place.

mod common;

use common::Temporary;
use std::io::Write;
use std::process::{Command, Stdio};

use nestwalk_capture::unpack_kernel;

/// 16 bytes: more than a token alone can count.
const ELF: &[u8] = b"\x7fELF\x02\x01\x01 a kernel";

/// An LZ4 block of literals only: the token's upper four bits are their number, 15 and more go on
/// in further bytes (lz4_Block_format.md).
fn literals(bytes: &[u8]) -> Vec<u8> {
    let mut block = match bytes.len() {
        short @ 0..15 => vec![(short as u8) << 4],
        long => vec![0xf0, u8::try_from(long - 15).expect("a short text")],
    };
    block.extend(bytes);
    block
}

fn legacy_frame(blocks: &[&[u8]]) -> Vec<u8> {
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    for block in blocks {
        let block = literals(block);
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
    }
    frame
}

/// A file of the boot protocol with one sector of setup and the payload at once behind it.
fn bz_image(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 2 * 512];
    file[0x1f1] = 1; // setup_sects
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    file.extend(payload);
    file.extend((ELF.len() as u32).to_le_bytes());
    file
}

fn unpack(file: &[u8]) -> Result<Vec<u8>, String> {
    let directory = Temporary::new();
    let path = directory.file("vmlinuz", file);
    unpack_kernel(&path).map_err(|error| {
        let text = error.to_string();
        let name = path.display().to_string();
        text.strip_prefix(&format!("{name}: ")).expect("the error begins with the file").to_owned()
    })
}

#[test]
fn the_payload_is_unpacked() {
    assert_eq!(unpack(&bz_image(&legacy_frame(&[ELF]))).unwrap(), ELF);
    let (first, second) = ELF.split_at(9);
    assert_eq!(unpack(&bz_image(&legacy_frame(&[first, second]))).unwrap(), ELF);
    assert_eq!(unpack(ELF).unwrap(), ELF, "an ELF file is taken as it is");
}

/// What a program of the system makes of `bytes`.
fn packed_by(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().expect("a pipe").write_all(bytes).expect("a few bytes");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{program}");
    output.stdout
}

/// As the kernel's build packs it (`scripts/Makefile.lib`): xz with the filter for x86 and CRC-32.
#[test]
fn every_packing_is_told_by_its_magic_number() {
    let large =
        [ELF, &vec![7; 3 << 20], &(0..=255).cycle().take(1 << 20).collect::<Vec<u8>>()].concat();
    let ways: [(&str, &[&str]); 3] = [
        ("gzip", &["-n", "-9"]),
        ("xz", &["--check=crc32", "--x86", "--lzma2=dict=128MiB"]),
        ("zstd", &["--quiet", "--ultra", "-22"]),
    ];
    for (program, arguments) in ways {
        let payload = packed_by(program, arguments, &large);
        assert_eq!(unpack(&bz_image(&payload)).unwrap(), large, "{program}");
        // Cut off, and damaged in the middle.
        let error = unpack(&bz_image(&payload[..payload.len() - 9])).unwrap_err();
        assert!(error.starts_with("its payload cannot be unpacked: "), "{error}");
        assert!(error.contains(&format!("{program} stream, at or before its byte ")), "{error}");
        let mut wrong = payload.clone();
        let middle = wrong.len() / 2;
        wrong[middle..middle + 40.min(payload.len() - middle)].fill(0x5a);
        assert!(unpack(&bz_image(&wrong)).is_err_and(|e| e.contains(program)), "{program}");
    }
}

#[test]
fn damage_is_named_with_its_place() {
    let good = bz_image(&legacy_frame(&[ELF]));
    let error = |file: &[u8]| unpack(file).expect_err("damaged");
    assert_eq!(error(b"text"), "is not a Linux kernel: no \"HdrS\" at byte 0x202");
    assert_eq!(error(&[0; 4096]), "is not a Linux kernel: no \"HdrS\" at byte 0x202");
    let mut old = good.clone();
    old[0x206] = 0x07;
    assert_eq!(error(&old), "has boot protocol 0x207; at least 0x208 is needed");
    assert_eq!(
        error(&good[..good.len() - 5]),
        "ends at byte 1049, before its payload of 30 bytes at 1024 does"
    );
    assert_eq!(
        error(&bz_image(b"\x89LZO\0 and more")),
        "its payload begins with [89, 4c, 5a, 4f, 00, 20], which is neither LZ4 nor zstd, xz or gzip: \
         take the kernel's vmlinux instead"
    );
    assert_eq!(
        error(&bz_image(&legacy_frame(&[b"no ELF"]))),
        "its payload is not a 64-bit ELF file"
    );
    let mut long = good.clone();
    long[1028] = 200; // the block's size
    assert_eq!(error(&long), "LZ4 block of 200 bytes at byte 4 of the payload is cut off");
    let mut wrong = good;
    wrong[1033] = 200; // behind the token: how many literals there are beyond 15
    assert!(error(&wrong).starts_with("LZ4 block at byte 4 of the payload: "));
}
