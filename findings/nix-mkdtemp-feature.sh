#!/usr/bin/env bash
# nix 0.31.3: unistd::mkdtemp, which makes a temporary folder, is not there with the feature "fs" alone, which
# has unistd::mkdir, rmdir and mkstemp. It needs "feature" beside it, whose own matter are sysconf and pathconf.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cargo init --quiet --vcs none --lib --name folders .
cp Cargo.toml bare.toml
checked() { # FEATURES FUNCTION
    cp bare.toml Cargo.toml
    echo "nix = { version = \"=0.31.3\", default-features = false, features = [$1] }" >> Cargo.toml
    echo "pub use nix::unistd::$2;" > src/lib.rs
    if cargo check --quiet 2> errors; then echo there; else grep -o -m 1 "no \`$2\` in \`unistd\`" errors; fi
}
seen="mkdir, fs: $(checked '"fs"' mkdir); mkdtemp, fs: $(checked '"fs"' mkdtemp)"
seen+="; mkdtemp, fs and feature: $(checked '"fs", "feature"' mkdtemp)"
cargo --version
echo "$seen"
[[ $seen == 'mkdir, fs: there; mkdtemp, fs: no `mkdtemp` in `unistd`; mkdtemp, fs and feature: there' ]]
