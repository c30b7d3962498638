//! The lock of the shadow tables, which one vCPU holds at a time (KVM's `mmu_lock`): how long vCPUs wait
//! for it, from what was counted.
//!
//! vCPUs come to the lock, hold it, and go away to run. With the times of each known that is a closed
//! queueing network of one queue and one delay (the machine repairman), whose exact mean values follow
//! by recursion over the number of customers (Reiser and Lavenberg, Mean-value analysis of closed
//! multichain queueing networks, Journal of the ACM 27(2), 1980):
//!
//! ```text
//! R(n) = S * (1 + Q(n - 1))     time from coming to the lock to giving it up
//! X(n) = n / (Z + R(n))         visits per time
//! Q(n) = X(n) * R(n)            vCPUs at the lock
//! ```
//!
//! A lock that another processor waits for costs its new holder the line it lies in, and what it
//! protects: `S` grows by a hand-off as often as a vCPU that comes finds the lock taken.

use crate::measure::counters::Counters;
use nestwalk_hw::{Profile, SoftwareProfile};

/// Times of one visit, in any one unit.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Visit {
    /// From giving the lock up to coming to it again.
    pub away: f64,
    /// The lock is held.
    pub held: f64,
    /// More of it if the lock came from another processor.
    pub handoff: f64,
}

impl Visit {
    /// How long one of so many vCPUs waits at each visit, hand-offs included. Between whole numbers of
    /// vCPUs it is interpolated.
    pub fn waiting(self, vcpus: f64) -> f64 {
        let below = vcpus.floor();
        let (few, more) = (self.waiting_of(below as u32), self.waiting_of(below as u32 + 1));
        few + (more - few) * (vcpus - below)
    }

    fn waiting_of(self, vcpus: u32) -> f64 {
        let (mut at_lock, mut busy, mut waiting) = (0.0, 0.0, 0.0);
        for n in 1..=vcpus {
            let service = self.held + self.handoff * busy;
            let stay = service * (1.0 + at_lock);
            let rate = f64::from(n) / (self.away + stay);
            at_lock = rate * stay;
            busy = (rate * service).min(1.0);
            waiting = stay - self.held;
        }
        waiting
    }
}

/// As how many vCPUs that come to the lock alike often those do that came: 4 if each of 4 came as often
/// as the others, near 1 if almost all visits were of one.
pub fn alike(visits: &[u64]) -> f64 {
    let sum: f64 = visits.iter().map(|n| *n as f64).sum();
    let squares: f64 = visits.iter().map(|n| (*n as f64).powi(2)).sum();
    if squares > 0.0 { sum * sum / squares } else { 0.0 }
}

/// What the vCPUs of a machine wait for the lock in all, in nanoseconds: `held_ns` is what they hold it,
/// `total_ns` all that they do, without waiting.
pub fn waiting_ns(c: &Counters, held_ns: f64, total_ns: f64, profile: &Profile) -> f64 {
    let visits = c.lock_visits.total() as f64;
    let vcpus = alike(c.lock_visits.each());
    if vcpus <= 1.0 {
        return 0.0;
    }
    let visit = Visit {
        away: (total_ns - held_ns).max(0.0) / visits,
        held: held_ns / visits,
        handoff: profile.software.lock_handoff_ns.value,
    };
    visits * visit.waiting(vcpus)
}

/// One process alone; times in microseconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Alone {
    /// All that it takes.
    pub total: f64,
    /// Of this, the lock is held.
    pub held: f64,
    /// Visits to the lock.
    pub visits: f64,
    /// Flushes of all processors.
    pub flushes: f64,
}

/// Several processes that do the same, each on a vCPU of its own: what one of them does; times in
/// microseconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Together {
    /// How many.
    pub processes: f64,
    /// Visits to the lock.
    pub visits: f64,
    /// The lock is held, without waiting for those that a flush calls out.
    pub held: f64,
    /// Processors that its flushes call out.
    pub called_out: f64,
    /// Beside the lock, exits for the flushes of the others included.
    pub away: f64,
    /// A hand-off of the lock.
    pub handoff: f64,
}

impl Together {
    /// So many that each do what one does alone, and that take `more` microseconds each, beside the
    /// lock, because the others run.
    pub fn new(processes: u32, one: Alone, more: f64, software: &SoftwareProfile) -> Self {
        // Each process calls out all others as often as it is called out.
        let called_out = one.flushes * (f64::from(processes) - 1.0);
        let exits = called_out * software.exit_ns.value / 1000.0;
        Self {
            processes: f64::from(processes),
            visits: one.visits,
            held: one.held,
            called_out,
            away: one.total - one.held + exits + more,
            handoff: software.lock_handoff_ns.value / 1000.0,
        }
    }
    /// Microseconds that one of them takes if the VMM waits `flush` of them for each processor that it
    /// calls out.
    pub fn takes(&self, flush: f64) -> f64 {
        let held = self.held + self.called_out * flush;
        let (away, visits) = (self.away / self.visits, self.visits);
        let visit = Visit { away, held: held / visits, handoff: self.handoff };
        held + self.away + visits * visit.waiting(self.processes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    /// The probabilities of the states of the machine repairman, written down: with `N` customers, `n`
    /// of them at the server, `p(n) = p(0) N! / (N - n)! (S / Z)^n`.
    fn closed_form(vcpus: u32, away: f64, held: f64) -> f64 {
        let mut weights = vec![1.0];
        for n in 1..=vcpus {
            weights.push(weights[n as usize - 1] * f64::from(vcpus - n + 1) * held / away);
        }
        let all: f64 = weights.iter().sum();
        let at_lock: f64 =
            weights.iter().zip(0..).map(|(w, n)| w * f64::from(n)).sum::<f64>() / all;
        let rate = (1.0 - weights[0] / all) / held;
        at_lock / rate - held
    }

    #[test]
    fn waiting_is_that_of_the_machine_repairman() {
        for vcpus in [1, 2, 4, 32] {
            for (away, held) in [(100.0, 1.0), (10.0, 1.0), (1.0, 1.0), (0.25, 1.0)] {
                let visit = Visit { away, held, handoff: 0.0 };
                let expected = closed_form(vcpus, away, held);
                let found = visit.waiting(f64::from(vcpus));
                assert!(
                    (found - expected).abs() < 1e-9 * (1.0 + expected),
                    "{vcpus} {away} {found}"
                );
            }
        }
    }

    /// vCPUs that are simulated one visit at a time, with exponential times, wait as long.
    #[test]
    fn waiting_is_that_of_a_simulated_lock() {
        let (vcpus, away, held) = (4_usize, 3.0, 1.0);
        let mut r = SplitMix64::new(1);
        let mut random =
            |mean: f64| -mean * (1.0 - (r.next() >> 11) as f64 / (1_u64 << 53) as f64).ln();
        let mut comes: Vec<f64> = (0..vcpus).map(|_| random(away)).collect();
        let (mut free, mut waited, visits) = (0.0_f64, 0.0, 400_000);
        for _ in 0..visits {
            let next = (0..vcpus).min_by(|a, b| comes[*a].total_cmp(&comes[*b])).unwrap();
            let begins = comes[next].max(free);
            waited += begins - comes[next];
            free = begins + random(held);
            comes[next] = free + random(away);
        }
        let simulated = waited / f64::from(visits);
        let found = Visit { away, held, handoff: 0.0 }.waiting(vcpus as f64);
        assert!((simulated / found - 1.0).abs() < 0.02, "{simulated} {found}");
    }

    #[test]
    fn a_lock_that_all_wait_for_is_held_and_handed_over_all_the_time() {
        let visit = Visit { away: 0.001, held: 2.0, handoff: 3.0 };
        let cycle = visit.waiting(32.0) + visit.held;
        assert!((cycle / (32.0 * 5.0) - 1.0).abs() < 0.01, "{cycle}");
    }

    #[test]
    fn vcpus_are_counted_by_how_alike_they_come() {
        assert!((alike(&[5, 5, 5, 5]) - 4.0).abs() < 1e-12);
        assert!((alike(&[7]) - 1.0).abs() < 1e-12);
        assert!(alike(&[1000, 1]) < 1.01);
        assert!(alike(&[]).abs() < 1e-12);
    }
}
