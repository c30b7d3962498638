#!/usr/bin/env bash
# Cargo 1.95.0 compiles procedural macros and build scripts with opt-level 0 in a release build, but a
# profile for all dependencies, [profile.release.package."*"], takes them along: opt-level = 1 there also
# optimises code that runs only while the build does, and [profile.release.build-override], which is for
# such code, does not win against it. Seen in the compiler's command line for the macro crate paste
# 1.0.15: no opt-level without the profile, opt-level=1 with it, and with the override beside it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cargo init --quiet --vcs none --lib --name macros .
echo 'paste = "=1.0.15"' >> Cargo.toml
cp Cargo.toml plain.toml

level() { # of the macro crate, `-` if the command line has none
    cargo build --release --verbose --target-dir "$1" 2>&1 |
        grep -- '--crate-name paste ' | grep -o 'opt-level=[0-9]' || echo -
}
seen=$(level plain)
printf '[profile.release.package."*"]\nopt-level = 1\n' >> Cargo.toml
seen+=" $(level all)"
printf '[profile.release.build-override]\nopt-level = 0\n' >> Cargo.toml
seen+=" $(level override)"
cargo --version
echo "plain, with the profile, with the override beside it: $seen"
[[ $seen == "- opt-level=1 opt-level=1" ]]
