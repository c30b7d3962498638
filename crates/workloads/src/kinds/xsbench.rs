//! `xsbench`: macroscopic neutron cross-section look-ups.
//!
//! Source: XSBench 20 (`openmp-threading/Simulation.c`, event-based, 17 million look-ups): random
//! energy and material; binary search in the unionized energy grid; then, for every nuclide of the
//! material, two neighbouring points of its grid are interpolated. With `nuclide=1` there is no
//! unionized grid and every nuclide's grid is searched (`-G nuclide`). Below 1 GiB there are 68
//! nuclides (`-s small`), from there on 355 (`large`, `XL`); the grid points per nuclide take the
//! footprint, as XSBench's sizes do. Materials have XSBench's numbers of nuclides and
//! probabilities; which nuclides they are is of the same pattern (water is in the reflectors and
//! assembly ends, `large` adds to fuel only) but not the same list.
//!
//! Real: the searches, the interpolation and its result. Implicit: the grids. Point i of the union
//! has the energy (i + jitter) / points; among each 68 or 355 consecutive points every nuclide has
//! one, in an order of its own. So the index grid has a closed form, too.
//! The five sums are in registers, as with -O3. Instructions: 9 per step of a search, 47 per
//! nuclide, as gcc 12.2 -O2 compiles them.

use crate::data::{hash2, unit};
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use crate::{REGION, Workload};
use nestwalk_types::{Source, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "xsbench",
    summary: "cross-section look-ups in nuclide grids, with a unionized energy grid",
    footprint: 4 << 30,
    settings: &[
        Setting {
            name: "nuclide",
            summary: "1 searches every nuclide's grid instead of the unionized grid",
            default: 0,
            range: (0, 1),
        },
        Setting {
            name: "lookups",
            summary: "look-ups until the algorithm ends",
            default: 17_000_000,
            range: (1, 1 << 40),
        },
        REGION,
    ],
    make,
};

const SEARCH: Site = Site::new(0, 9);
const NUM_NUCS: Site = Site::new(1, 24);
const MAT: Site = Site::new(2, 3);
const CONC: Site = Site::new(3, 1);
const INDEX: Site = Site::new(4, 3);
const NUCLIDE_SEARCH: Site = Site::new(5, 11);
const HIGH_ENERGY: Site = Site::new(6, 8);
const LOW_ENERGY: Site = Site::new(7, 2);
const HIGH_XS: Site = Site::new(8, 3);
const LOW_XS: Site = Site::new(9, 3);

const MATERIALS: usize = 12;
/// Nuclides per material; fuel, the first, has 34 or 321.
const NUCLIDES: [u64; MATERIALS] = [34, 5, 4, 4, 27, 21, 21, 21, 21, 21, 9, 9];
const FUEL_LARGE: u64 = 321;
/// Probability of each material (`pick_mat`).
const SHARES: [f64; MATERIALS] =
    [0.140, 0.052, 0.275, 0.134, 0.154, 0.064, 0.066, 0.055, 0.008, 0.015, 0.025, 0.013];
/// Footprint from which on the large problem is chosen, bytes.
const LARGE: u64 = 1 << 30;
/// Energy and five cross sections, doubles.
const POINT: u64 = 48;
const CHANNELS: usize = 5;
/// Nuclides per step.
const STEP: u64 = 8;

/// The contents of all grids.
struct Grids {
    nuclides: u64,
    /// Grid points of each nuclide.
    points: u64,
    /// Numbers without a common divisor with `nuclides`.
    coprimes: Vec<u64>,
    seed: u64,
}

impl Grids {
    fn new(nuclides: u64, points: u64, seed: u64) -> Self {
        const fn divisor(a: u64, b: u64) -> u64 {
            if b == 0 { a } else { divisor(b, a % b) }
        }
        let coprimes = (1..nuclides).filter(|&a| divisor(a, nuclides) == 1).collect();
        Self { nuclides, points, coprimes, seed: mix64(seed ^ 0x7873) }
    }
    /// Energy of point `i` of the union, ascending in `i`, in `[0, 1)`.
    #[inline(always)]
    fn union_energy(&self, i: u64) -> f64 {
        (i as f64 + unit(mix64(i ^ self.seed))) / (self.nuclides * self.points) as f64
    }
    /// Which of the union's points in stretch `point` is the nuclide's.
    #[inline(always)]
    fn place(&self, nuclide: u64, point: u64) -> u64 {
        let h = hash2(point, self.seed);
        let factor = self.coprimes[(h >> 32) as usize % self.coprimes.len()];
        (nuclide * factor + (h & 0xffff_ffff)) % self.nuclides
    }
    /// Energy of a nuclide's grid point.
    #[inline(always)]
    fn energy(&self, nuclide: u64, point: u64) -> f64 {
        self.union_energy(point * self.nuclides + self.place(nuclide, point))
    }
    /// A cross section at a nuclide's grid point, in `[0, 1)`.
    #[inline(always)]
    fn cross_section(&self, nuclide: u64, point: u64, channel: usize) -> f64 {
        let at = (nuclide * self.points + point) * CHANNELS as u64 + channel as u64;
        unit(mix64(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.seed))
    }
    /// The index grid: the nuclide's last point that is not above point `i` of the union, but never
    /// its last of all, which has no right neighbour.
    #[inline(always)]
    fn index(&self, i: u64, nuclide: u64) -> u64 {
        let (stretch, place) = (i / self.nuclides, i % self.nuclides);
        let below = self.place(nuclide, stretch) > place;
        stretch.saturating_sub(u64::from(below)).min(self.points - 2)
    }
    /// How much of a nuclide a material has, in `[0, 1)`.
    fn concentration(&self, material: usize, j: u64) -> f64 {
        unit(hash2(material as u64 * 1000 + j, self.seed ^ 1))
    }
    /// Nuclide number `j` of a material.
    const fn nuclide_of(material: usize, j: u64) -> u64 {
        match material {
            // The large problem adds nuclides 68.. to the 34 of fuel.
            0 if j >= 34 => 68 + j - 34,
            0 => j,
            1 => 63 + j,
            4 => 36 + j,
            10 | 11 if j >= 4 => 63 + j - 4,
            _ => 34 + j,
        }
    }
}

/// The generator of XSBench: 63 bits, in `[0, 1)`.
fn random(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(2_806_196_910_506_780_709).wrapping_add(1) & (u64::MAX >> 1);
    *seed as f64 / (1u64 << 63) as f64
}

fn pick_material(roll: f64) -> usize {
    let mut sum = 0.0;
    for (i, share) in SHARES.iter().enumerate().skip(1) {
        sum += share;
        if roll < sum {
            return i;
        }
    }
    0
}

#[derive(Clone, Copy)]
struct LookUp {
    energy: f64,
    material: usize,
    /// Where the energy is in the union.
    union_index: u64,
    /// Next nuclide of the material.
    j: u64,
    sums: [f64; CHANNELS],
}

struct Xsbench {
    grids: Grids,
    num_nucs: Region,
    mats: Region,
    concs: Region,
    /// None with `-G nuclide`.
    union: Option<(Region, Region)>,
    nuclide_grids: Region,
    seed: u64,
    open: Option<LookUp>,
    done: u64,
    look_ups: u64,
    /// XSBench's verification: sum of 1 + the index of the largest cross section of each look-up.
    checksum: u64,
}

impl Xsbench {
    fn new(
        (nuclides, points): (u64, u64),
        unionized: bool,
        look_ups: u64,
        seed: u64,
        space: &mut AddressSpace,
    ) -> Self {
        let all = nuclides * points;
        let most = if nuclides == 68 { NUCLIDES[0] } else { FUEL_LARGE };
        let nuclide_grids = space.malloc(all * POINT);
        let union = unionized.then(|| (space.malloc(all * 8), space.malloc(all * nuclides * 4)));
        Self {
            num_nucs: space.malloc(4 * MATERIALS as u64),
            mats: space.malloc(4 * MATERIALS as u64 * most),
            concs: space.malloc(8 * MATERIALS as u64 * most),
            union,
            nuclide_grids,
            grids: Grids::new(nuclides, points, seed),
            seed: 1070u64.wrapping_add(seed) & (u64::MAX >> 1),
            open: None,
            done: 0,
            look_ups,
            checksum: 0,
        }
    }

    const fn nuclides_of(&self, material: usize) -> u64 {
        if material == 0 && self.grids.nuclides != 68 { FUEL_LARGE } else { NUCLIDES[material] }
    }
    /// Most nuclides that a material has: the row length of the lists.
    const fn most(&self) -> u64 {
        self.nuclides_of(0)
    }

    /// Last index in `0..n - 1` whose energy is not above `quarry` (`grid_search`).
    #[inline(always)]
    fn search(n: u64, quarry: f64, mut energy_at: impl FnMut(u64) -> f64) -> u64 {
        let (mut low, mut high) = (0, n - 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if energy_at(middle) > quarry {
                high = middle;
            } else {
                low = middle;
            }
        }
        low
    }

    fn begin(&mut self, m: &mut Recorder) -> LookUp {
        let energy = random(&mut self.seed);
        let material = pick_material(random(&mut self.seed));
        let union_index = self.union.map_or(0, |(energies, _)| {
            Self::search(self.grids.nuclides * self.grids.points, energy, |i| {
                m.load(SEARCH, energies.at(i, 8), 8);
                self.grids.union_energy(i)
            })
        });
        m.load(NUM_NUCS, self.num_nucs.at(material as u64, 4), 4);
        LookUp { energy, material, union_index, j: 0, sums: [0.0; CHANNELS] }
    }

    /// Adds one nuclide's share.
    #[inline(always)]
    fn nuclide(&self, m: &mut Recorder, l: &mut LookUp) {
        let entry = l.material as u64 * self.most() + l.j;
        m.load(MAT, self.mats.at(entry, 4), 4);
        m.load(CONC, self.concs.at(entry, 8), 8);
        let nuclide = Grids::nuclide_of(l.material, l.j);
        let first = nuclide * self.grids.points;
        let low = match self.union {
            Some((_, index_grid)) => {
                let at = index_grid.at(l.union_index * self.grids.nuclides + nuclide, 4);
                m.load(INDEX, at, 4);
                self.grids.index(l.union_index, nuclide)
            }
            None => Self::search(self.grids.points, l.energy, |point| {
                m.load(NUCLIDE_SEARCH, self.nuclide_grids.at(first + point, POINT), 8);
                self.grids.energy(nuclide, point)
            }),
        };
        let low_at = self.nuclide_grids.at(first + low, POINT);
        m.load(HIGH_ENERGY, low_at + POINT, 8);
        m.load(LOW_ENERGY, low_at, 8);
        let (above, below) = (self.grids.energy(nuclide, low + 1), self.grids.energy(nuclide, low));
        let f = (above - l.energy) / (above - below);
        let concentration = self.grids.concentration(l.material, l.j);
        for channel in 0..CHANNELS {
            let offset = 8 + 8 * channel as u64;
            m.load(HIGH_XS, low_at + POINT + offset, 8);
            m.load(LOW_XS, low_at + offset, 8);
            let high_xs = self.grids.cross_section(nuclide, low + 1, channel);
            let low_xs = self.grids.cross_section(nuclide, low, channel);
            l.sums[channel] += (high_xs - f * (high_xs - low_xs)) * concentration;
        }
        l.j += 1;
    }
}

impl Kernel for Xsbench {
    fn step(&mut self, m: &mut Recorder) -> bool {
        let mut l = match self.open.take() {
            Some(l) => l,
            None => self.begin(m),
        };
        let end = self.nuclides_of(l.material);
        for _ in 0..STEP.min(end - l.j) {
            self.nuclide(m, &mut l);
        }
        if l.j < end {
            self.open = Some(l);
            return true;
        }
        let largest = (0..CHANNELS).fold(0, |a, b| if l.sums[b] > l.sums[a] { b } else { a });
        self.checksum = self.checksum.wrapping_add(largest as u64 + 1);
        self.done += 1;
        !self.done.is_multiple_of(self.look_ups)
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let unionized = !options.is_set("nuclide");
    let nuclides = if spec.footprint < LARGE { 68 } else { 355 };
    // What remains for the lists of materials: 12 rows of 321 numbers of 4 and of 8 bytes.
    let lists = 12 * MATERIALS as u64 * if nuclides == 68 { 34 } else { FUEL_LARGE };
    let point = POINT + if unionized { 8 + 4 * nuclides } else { 0 };
    let points = (spec.footprint - lists) / (nuclides * point);
    let mut space = AddressSpace::with_region(options.is_set(REGION.name));
    let look_ups = options.get("lookups");
    let kernel = Xsbench::new((nuclides, points), unionized, look_ups, spec.seed, &mut space);
    let grid = if unionized { "unionized" } else { "nuclide" };
    let about = About {
        name: WORKLOAD.name,
        description: format!("XSBench, {grid} grid, {nuclides} nuclides of {points} points"),
        approximations: &[],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look-up without any search structure: each nuclide's points one by one.
    fn naive(x: &Xsbench, energy: f64, material: usize) -> [f64; CHANNELS] {
        let mut sums = [0.0; CHANNELS];
        for j in 0..x.nuclides_of(material) {
            let nuclide = Grids::nuclide_of(material, j);
            let energies: Vec<f64> =
                (0..x.grids.points).map(|p| x.grids.energy(nuclide, p)).collect();
            assert!(energies.is_sorted_by(|a, b| a < b));
            let mut low = 0;
            while low + 2 < energies.len() && energies[low + 1] <= energy {
                low += 1;
            }
            let share = (energies[low + 1] - energy) / (energies[low + 1] - energies[low]);
            for (channel, sum) in sums.iter_mut().enumerate() {
                let at = |p: usize| x.grids.cross_section(nuclide, p as u64, channel);
                let xs = at(low) * share + at(low + 1) * (1.0 - share);
                *sum += xs * x.grids.concentration(material, j);
            }
        }
        sums
    }

    #[test]
    fn sums_equal_a_linear_search() {
        for (nuclides, unionized) in [(68, true), (355, true), (68, false), (355, false)] {
            let size = (nuclides, 23);
            let mut x = Xsbench::new(size, unionized, 100, 4, &mut AddressSpace::new());
            let mut m = Recorder::new(u64::MAX);
            let mut materials = [0; MATERIALS];
            for _ in 0..300 {
                let mut l = x.begin(&mut m);
                while l.j < x.nuclides_of(l.material) {
                    x.nuclide(&mut m, &mut l);
                }
                materials[l.material] += 1;
                for (sum, expected) in l.sums.iter().zip(naive(&x, l.energy, l.material)) {
                    assert!((sum - expected).abs() < 1e-6 * expected.abs().max(1.0));
                }
            }
            assert!(materials[0] > 20 && materials[2] > 40);
        }
    }

    #[test]
    fn the_union_is_all_energies_in_order() {
        let g = Grids::new(68, 31, 9);
        let mut all: Vec<f64> = (0..68)
            .flat_map(|n| (0..31).map(move |p| (n, p)))
            .map(|(n, p)| g.energy(n, p))
            .collect();
        all.sort_by(f64::total_cmp);
        for (i, energy) in all.iter().enumerate() {
            assert!(g.union_energy(i as u64).total_cmp(energy).is_eq(), "{i}");
        }
    }

    #[test]
    fn materials_name_nuclides_that_exist_once() {
        for (material, &count) in NUCLIDES.iter().enumerate() {
            let mut list: Vec<u64> = (0..count).map(|j| Grids::nuclide_of(material, j)).collect();
            assert!(list.iter().all(|&n| n < 68));
            list.sort_unstable();
            list.dedup();
            assert_eq!(list.len() as u64, count);
        }
        assert_eq!(Grids::nuclide_of(0, FUEL_LARGE - 1), 354);
        assert!((SHARES.iter().sum::<f64>() - 1.001).abs() < 1e-9);
    }
}
