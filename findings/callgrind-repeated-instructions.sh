#!/usr/bin/env bash
# valgrind's tool callgrind (Debian 12's 3.19.0) counts an instruction with a repeat prefix once for each
# repetition: `rep movsb` of 1,000 bytes adds 999 instructions to one of a single byte, and `rep movsq` of the
# same bytes 124. A processor retires one instruction in each case. So a count tells more work where memory
# is copied by string instructions, as the C library does with large blocks on processors that are fast at
# it, than where it is copied by vector registers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

version=1:3.19.0-1
apt-get download --quiet "valgrind=$version" >/dev/null
dpkg -x valgrind_*.deb root
export VALGRIND_LIB=$folder/root/usr/libexec/valgrind

counted() { # COUNT INSTRUCTION: instructions of a program that repeats it so many times
    printf '.globl _start\n_start:\nlea from(%%rip), %%rsi\nlea to(%%rip), %%rdi\nmov $%d, %%ecx\nrep %s\n' "$@" > copy.s
    printf 'mov $60, %%eax\nxor %%edi, %%edi\nsyscall\n.bss\nfrom: .skip 1024\nto: .skip 1024\n' >> copy.s
    gcc -nostdlib -static -o copy copy.s
    root/usr/bin/valgrind --tool=callgrind --callgrind-out-file=out ./copy 2> messages
    sed -n 's/^summary: //p' out
}
seen="$(($(counted 1000 movsb) - $(counted 1 movsb))) $(($(counted 125 movsq) - $(counted 1 movsq)))"
echo "1,000 bytes instead of one, 125 words instead of one: $seen more"
[[ $seen == "999 124" ]]
