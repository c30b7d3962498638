//! What stands below the help of commands.

pub(super) const CAPTURE_EXAMPLES: &str = "\
Examples:
  nestwalk capture --save gcc.nwt -- gcc -O2 -c file.c
  nestwalk capture --package redis-server --vcpus 2 --save redis.nwt -- sh load.sh
  nestwalk capture --check --thp never -- ./static-program argument
  nestwalk compare gcc.nwt

Programs come from Debian packages; files and directories that the command's arguments name are copied
into the guest. The exit code is 1 if the command failed, and 2 if something else was wrong; standard error
says what.
`nestwalk setup` gets what this needs.";

pub(super) const GOVERN_EXAMPLES: &str = "\
Examples:
  nestwalk govern --list
  nestwalk govern 4711 --policy dynamic-thresholds:high=12,low=3 --record samples.csv
  nestwalk govern --dry-run
  nestwalk govern --replay samples.csv --policy single-metric
  nestwalk govern --replay shadow.csv nested.csv --policy hindsight

Live, it counts cycles, instructions, page walks and TLB misses of the vCPU threads of a QEMU with KVM,
asks the policy after each interval, and writes the mode to KVM's file for that VM, which takes the
kernel patch of Runtime-aware Paging Mode Switching. Ctrl-C ends it and says in which mode the VM is.

Exit code 0: the VM exited, the recording ended, or Ctrl-C. 2: something was wrong.";

pub(super) const REPRODUCE_EXAMPLES: &str = "\
Examples:
  nestwalk reproduce thesis --programs seasons,btree --keep nested --lived long
  nestwalk reproduce thesis --recordings DIR --format json
  nestwalk reproduce agile
  nestwalk reproduce agile --programs gcc --figures figures --as svg,pgf

samples/thesis/record DIR records programs of the thesis: gcc, perl, sqlite, xalan, redis, x264, vips.";

pub(super) const CONVERT_HELP: &str = "\
Examples:
  nestwalk trace convert live.nwt small.nwt --level 22
  nestwalk trace convert gcc.nwt gcc.champsim.xz --user-only --process 87
  nestwalk trace convert trace.champsim.xz trace.nwt
  nestwalk trace convert pinatrace.out trace.drmemtrace.gz --accesses 10M

To nestwalk: a trace of nestwalk is compressed again; any other is given to a modelled Linux
guest with 4 KiB pages, whose page tables, faults and invalidations become part of the trace, or,
with --page-tables, to an observed one that has those.

To champsim, cloudsuite, lackey and drmemtrace, from a trace of accesses: access by access. What
the format has no place for is counted and said: sizes, processes, kernel mode, addresses of
instructions that were not fetched. Accesses cover the cache lines that they did.

To them from a recorded guest: an instruction for each cache line of a fetch run and for each data run,
which accesses the run's first address and loads from each further line that it touched. Lost
are: how often and when lines were touched again, sizes (all are 1 byte), page tables and address
spaces (processes are mixed unless --process chooses one), and branches. Instructions that make
no run are left out unless --all-instructions is given.";
