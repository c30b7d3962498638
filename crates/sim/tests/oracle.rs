//! The machine's TLB misses equal, exactly, those of a naive oracle of the same geometry, on random
//! and on real streams, under every scheme and profile.

use crate::common;

use common::lives::Life;
use common::machines::{ALL_SIZES, Setup, array, plain, tlb};
use common::oracle::Oracle;
use common::pairs::Pairs;
use common::{Script, approve};
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_sim::DynMachine;
use nestwalk_source::{Lackey, Limit, Multiplex, PatternSpec, RunOptions};
use nestwalk_tables::{LONG4, LONG5, Mode};
use nestwalk_types::{
    Batch, Gpa, GuestBatch, Gva, Invalidation, PageSize, Protection, RunFlags, Source, SplitMix64,
    VcpuId,
};
use nestwalk_workloads::{Populate, WorkloadSpec};

const PROFILES: [&str; 4] =
    ["cascade-lake-6252", "kaby-lake-i5-7600", "sandy-bridge-e5-2430", "zen2"];

/// The profile with structures so small that a short stream fills them many times over.
fn small(mut profile: Profile) -> Profile {
    let mut first = true;
    for level in [&mut profile.l1d_tlb, &mut profile.l1i_tlb, &mut profile.l2_tlb] {
        for (i, a) in level.iter_mut().enumerate() {
            // Odd numbers of sets as well as powers of two.
            let (entries, ways) = if first { (8, 4) } else { (24 >> i, 4 >> i) };
            (a.entries, a.ways) = if a.ways == a.entries { (6, 6) } else { (entries, ways) };
        }
        first = false;
    }
    profile
}

#[test]
fn random_lives_of_guests() {
    let mut seed = 0;
    for name in PROFILES {
        for (pages, host_pages) in [("4k", "4k"), ("thp", "4k"), ("thp", "2m"), ("2m", "4k")] {
            for shrink in [false, true] {
                seed += 1;
                let mut profile = plain(Profile::load(name).unwrap());
                if shrink {
                    profile = small(profile);
                }
                let mode: &'static Mode = if seed % 3 == 0 { &LONG5 } else { &LONG4 };
                let setup = Setup { host_pages, vcpus: 3, guest_mode: mode, ..Setup::new(profile) };
                let what = format!("life {seed}, {pages} on {host_pages}");
                let mut pairs = Pairs::new(&setup, &what);
                let life = Life {
                    seed,
                    events: 300,
                    vcpus: 3,
                    accesses_percent: 75,
                    mode,
                    pages,
                    pcids: seed % 4 != 0,
                };
                life.live().iter().for_each(|events| pairs.follow(events));
                pairs.end();
            }
        }
    }
}

/// What a modelled guest never does: global pages, pages of all sizes beside each other, every kind
/// of invalidation, CR3 loads that keep, two vCPUs in the same address spaces.
struct Kernel {
    script: Script,
    roots: Vec<Gpa>,
    random: SplitMix64,
    mode: &'static Mode,
    /// What each vCPU runs, by index of the root.
    runs: [usize; 2],
}

/// Places of which each holds one page, of its own size; a GiB each.
const PLACES: u64 = 12;

impl Kernel {
    fn new(seed: u64, mode: &'static Mode) -> Self {
        let mut script = Script::new(mode);
        let roots = vec![script.root, script.add_root(), script.add_root()];
        let random = SplitMix64::new(seed);
        let mut kernel = Self { script, roots, random, mode, runs: [0, 0] };
        for vcpu in 0..2 {
            kernel.load_cr3(vcpu, 0, false);
        }
        for root in 0..3 {
            for place in 0..PLACES {
                kernel.map(root, place);
            }
        }
        kernel
    }

    fn size(place: u64) -> PageSize {
        [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G][(place % 3) as usize]
    }

    fn load_cr3(&mut self, vcpu: usize, root: usize, keep: bool) {
        self.script.vcpu = VcpuId(vcpu as u8);
        self.script.load_cr3(self.roots[root], root as u16 + 1, keep);
        self.runs[vcpu] = root;
    }

    /// 4 KiB pages come eight to a place. The last places are global: the same in all address spaces,
    /// as a kernel's pages are.
    fn map(&mut self, root: usize, place: u64) {
        let (size, global) = (Self::size(place), place >= PLACES - 3);
        let mut own = SplitMix64::new(place);
        let random = if global { &mut own } else { &mut self.random };
        self.script.root = self.roots[root];
        for i in 0..if size == PageSize::SIZE_4K { 8 } else { 1 } {
            let block = random.below(2 << 9) << 21;
            let gpa = ((1 << 30) + block + (i << 12)) & !size.mask();
            let read_only = random.below(4) == 0;
            let protection = if read_only { Protection::READ_EXECUTE } else { Protection::ALL };
            let bits = 0x20 | random.below(2) << 6 | u64::from(global) << 8;
            self.script.map((place << 30) + (i << 12), gpa, size, protection, bits);
        }
    }

    /// A change and all that is owed for it, on both vCPUs.
    fn remap(&mut self) {
        let place = self.random.below(PLACES - 3);
        let root = self.random.below(3) as usize;
        self.map(root, place);
        for vcpu in 0..2 {
            self.script.vcpu = VcpuId(vcpu);
            let current = self.runs[usize::from(vcpu)] == root;
            let pcid = root as u16 + 1;
            match self.random.below(4) {
                0 => self.script.invalidate(Invalidation::Pcid(pcid)),
                1 => self.script.invalidate(Invalidation::All),
                _ => {
                    for i in 0..if Self::size(place) == PageSize::SIZE_4K { 8 } else { 1 } {
                        let gva = Gva::new((place << 30) + (i << 12));
                        self.script.invalidate(if current {
                            Invalidation::Page(gva)
                        } else {
                            Invalidation::PageInPcid(gva, pcid)
                        });
                    }
                }
            }
        }
    }

    fn address(&mut self) -> u64 {
        let place = self.random.below(PLACES);
        let size = Self::size(place);
        let parts = if size == PageSize::SIZE_4K { 8 } else { 20 };
        let part = self.random.below(parts) * (size.bytes() / parts).max(4096);
        (place << 30) + (part & size.mask().max(0x7fff) & !0xfff)
    }

    fn event(&mut self) {
        let vcpu = self.random.below(2) as usize;
        match self.random.below(40) {
            0 => self.remap(),
            1..4 => {
                let (root, keep) = (self.random.below(3) as usize, self.random.below(4) > 0);
                self.load_cr3(vcpu, root, keep);
            }
            4 => {
                let gva = Gva::new(self.address());
                let pcid = self.random.below(4) as u16;
                self.script.vcpu = VcpuId(vcpu as u8);
                self.script.invalidate(match self.random.below(8) {
                    0 => Invalidation::All,
                    1 => Invalidation::AllButGlobal,
                    2 => Invalidation::Pcid(pcid),
                    3..5 => Invalidation::PageInPcid(gva, pcid),
                    _ => Invalidation::Page(gva),
                });
            }
            _ => {
                let gva = self.address();
                self.script.vcpu = VcpuId(vcpu as u8);
                self.script.root = self.roots[self.runs[vcpu]];
                let place = gva >> 30;
                let (_, leaf) =
                    self.script.entry(gva, self.mode.leaf_level(Self::size(place)).unwrap());
                let writable = leaf.has(nestwalk_tables::entry::WRITE);
                let flags = match self.random.below(3) {
                    0 => RunFlags::FETCH,
                    1 if writable => RunFlags::STORE,
                    _ => RunFlags::default(),
                };
                self.script.access_as(gva, flags);
            }
        }
    }
}

#[test]
fn random_kernels_with_global_pages_all_sizes_and_all_invalidations() {
    for (i, name) in PROFILES.into_iter().enumerate() {
        for (j, host_pages) in ["4k", "2m", "1g"].into_iter().enumerate() {
            for shrink in [false, true] {
                let mut profile = plain(Profile::load(name).unwrap());
                if shrink {
                    profile = small(profile);
                }
                let seed = (i * 8 + j) as u64;
                let mode: &'static Mode = if seed.is_multiple_of(2) { &LONG4 } else { &LONG5 };
                let setup = Setup { host_pages, vcpus: 2, guest_mode: mode, ..Setup::new(profile) };
                let mut pairs = Pairs::new(&setup, &format!("kernel {seed} on {host_pages}"));
                let mut kernel = Kernel::new(seed, mode);
                for _ in 0..40 {
                    (0..100).for_each(|_| kernel.event());
                    pairs.follow(&kernel.script.take());
                }
                pairs.end();
            }
        }
    }
}

/// Runs a source through a guest of these page sizes, and all machines and oracles.
fn real(
    source: &mut dyn Source,
    what: &str,
    vcpus: u8,
    profiles: &[&str],
    pages: &[(&str, &'static str)],
) {
    let mut guests: Vec<(ModelledGuest, Vec<Pairs>)> = pages
        .iter()
        .map(|(pages, host_pages)| {
            let config = GuestConfig {
                policy: PagePolicy::by_name(pages).unwrap(),
                ..GuestConfig::new(&LONG4, 3 << 30)
            };
            let pairs = profiles.iter().map(|name| {
                let profile = plain(Profile::load(name).unwrap());
                let setup = Setup {
                    host_pages,
                    vcpus: usize::from(vcpus),
                    verify: false,
                    ..Setup::new(profile)
                };
                Pairs::new(&setup, &format!("{what}, {pages} on {host_pages}"))
            });
            (ModelledGuest::new(config).unwrap(), pairs.collect())
        })
        .collect();
    let (mut batch, mut out) = (Batch::default(), GuestBatch::default());
    while source.next_batch(&mut batch).unwrap() {
        for (guest, pairs) in &mut guests {
            guest.process(&batch, &mut out).unwrap();
            pairs.iter_mut().for_each(|p| p.follow(&out));
        }
    }
    guests.iter().flat_map(|g| &g.1).for_each(Pairs::end);
}

fn workload(name: &str, mib: u64, accesses: u64) -> Box<dyn Source> {
    let spec = WorkloadSpec {
        footprint: mib << 20,
        accesses: Some(accesses),
        seed: 7,
        populate: Populate::No,
    };
    nestwalk_workloads::open(name, &spec).unwrap()
}

#[test]
fn workloads() {
    for (i, (name, mib)) in
        [("gups", 16), ("btree", 8), ("compiler", 8), ("kvstore", 16), ("svm", 8)]
            .into_iter()
            .enumerate()
    {
        let mut source = workload(name, mib, 25_000);
        let profiles = [PROFILES[i % 4], "zen2"];
        real(source.as_mut(), name, 1, &profiles[..1 + i % 2], &[("4k", "4k"), ("thp", "4k")]);
    }
}

/// Fork, copy-on-write, exec and exit of many processes, under each profile.
#[test]
fn a_forkstorm() {
    let mut source = workload("forkstorm:jobs=3,cow_pages=4", 2, 12_000);
    real(source.as_mut(), "forkstorm", 1, &PROFILES, &[("4k", "4k")]);
}

/// Several programs on two vCPUs, that take turns and change places.
#[test]
fn several_programs_on_two_vcpus() {
    let sources = vec![
        workload("btree", 4, 12_000),
        workload("gups", 4, 12_000),
        workload("compiler", 2, 12_000),
    ];
    let mut source = Multiplex::new(sources, 2, 3_000);
    real(
        &mut source,
        "three programs",
        2,
        &["cascade-lake-6252", "zen2"],
        &[("4k", "2m"), ("thp", "4k")],
    );
}

#[test]
fn patterns() {
    for name in ["uniform", "zipf", "chase"] {
        let base = PatternSpec { footprint: 16 << 20, accesses: 20_000, ..PatternSpec::default() };
        let mut source = PatternSpec::parse(name, &base).unwrap().source();
        real(&mut source, name, 1, &["kaby-lake-i5-7600"], &[("4k", "4k")]);
    }
}

/// A real program, with its instruction fetches, through valgrind (Debian package `valgrind`).
#[test]
fn a_real_program() {
    let live = Lackey::run(&["true".into()], &RunOptions::default())
        .expect("this test needs valgrind: install the Debian package `valgrind`");
    let mut source = Limit::new(Box::new(live), 150_000);
    real(&mut source, "true", 1, &PROFILES, &[("4k", "4k"), ("thp", "2m")]);
}

/// Oracle and machine do not agree on anything: with one way less, or with another order of use, they
/// differ.
#[test]
fn an_oracle_of_another_geometry_disagrees() {
    let mut profile = plain(Profile::load("zen2").unwrap());
    profile.l1d_tlb = vec![tlb(&ALL_SIZES, 12, 4)];
    let setup = Setup::new(profile.clone());
    for (entries, ways) in [(12, 3), (12, 6), (16, 4), (12, 12)] {
        profile.l1d_tlb = vec![tlb(&ALL_SIZES, entries, ways)];
        let mut oracle = Oracle::new(&profile, &LONG4, 1, None);
        let mut m = setup.native();
        let mut s = Script::new(&LONG4);
        (0..40).for_each(|i| s.map_used(i << 12, 0x4000_0000, PageSize::SIZE_4K));
        let mut r = SplitMix64::new(3);
        (0..4000).for_each(|_| s.load(r.below(40).min(r.below(40)) << 12));
        let events = s.take();
        m.run(&events).unwrap();
        oracle.follow(&events);
        approve(&m);
        assert!(oracle.agrees(m.counters()).is_err(), "{entries} in {ways}");
    }
    assert_eq!(array(12, 4).geometry().sets(), 3);
}
