#!/usr/bin/env bash
# valgrind's tool lackey (Debian 12's 3.19.0) does not show every load of a program: its optimiser removes
# a load whose register is overwritten before anything uses it, unless registers are kept up to date at
# each instruction. The option for that, --vex-iropt-register-updates, is documented for exceptions and
# not for what tools see. Seen: of 50 loads none by default, 16 with `allregs-at-mem-access`, all with
# `allregs-at-each-insn`. Who counts a program's accesses with lackey should give the latter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

version=1:3.19.0-1
apt-get download --quiet "valgrind=$version" >/dev/null
dpkg -x valgrind_*.deb root
export VALGRIND_LIB=$folder/root/usr/libexec/valgrind

{
    printf '.globl _start\n_start:\nlea cell(%%rip), %%rsi\n'
    # One in three loads is followed by another at once, the others by a constant in the same register.
    for i in {1..50}; do
        echo 'mov (%rsi), %eax'
        ((i % 3 == 0)) || echo 'mov $7, %eax'
    done
    printf 'mov $60, %%eax\nxor %%edi, %%edi\nsyscall\n.data\ncell: .quad 0\n'
} > loads.s
gcc -nostdlib -static -o loads loads.s

loads() { # MODE: data loads that lackey shows
    root/usr/bin/valgrind --tool=lackey --trace-mem=yes "--vex-iropt-register-updates=$1" ./loads 2>&1 |
        grep -c '^ L '
}
seen="$(loads unwindregs-at-mem-access) $(loads allregs-at-mem-access) $(loads allregs-at-each-insn)"
echo "of 50 loads, by default, with allregs-at-mem-access, with allregs-at-each-insn: $seen"
[[ $seen == "0 16 50" ]]
