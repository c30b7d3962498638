#!/usr/bin/env bash
# The frame encoder of the crate snap 1.1.2 writes nothing at all for input without bytes: not the stream
# identifier either, with which the format says that every stream begins. An empty file that was
# compressed is no snappy stream for a reader that tells formats by their first bytes. Seen: 0 bytes for
# no input; 10 bytes of identifier, a header of 8 and the data for one byte.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cargo init --quiet --vcs none --name frames .
cat >> Cargo.toml <<'TOML'
snap = "=1.1.2"
TOML
cat > src/main.rs <<'RUST'
use std::io::Write;

fn framed(input: &[u8]) -> usize {
    let mut out = Vec::new();
    let mut encoder = snap::write::FrameEncoder::new(&mut out);
    encoder.write_all(input).unwrap();
    encoder.flush().unwrap();
    drop(encoder);
    out.len()
}

fn main() {
    println!("{} {}", framed(b""), framed(b"a"));
}
RUST
seen=$(cargo run --quiet)
echo "bytes of a stream of no byte and of one: $seen"
[[ $seen == "0 19" ]]
