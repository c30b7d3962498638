//! Rows with many processes at once, each on a vCPU of its own: they wait for each other at the lock of
//! the shadow tables, and each flush of the hypervisor calls all the others out of the guest. What one
//! process costs alone was counted; what many cost each other follows from
//! `nestwalk_sim::measure::lock`.

use super::data::Row;
use super::{OfRow, Sample, sum_of};
use nestwalk_hw::Profile;
use nestwalk_sim::measure::lock::{Alone, Together};
use serde::Serialize;
use std::collections::BTreeMap;

/// A row with many processes, microseconds for one of what it measures.
#[derive(Serialize, Clone, Debug)]
pub struct Many {
    name: String,
    processes: u32,
    published_ept_us: f64,
    published_shadow_us: f64,
    /// With the profile's prices.
    shadow_us: f64,
    error_percent: f64,
    /// Visits to the lock.
    lock_visits: f64,
    /// The lock is held, by one process alone.
    lock_held_us: f64,
    /// Flushes that call the others out.
    remote_flushes: f64,
    /// What would meet this row alone for each processor that a flush calls out, nanoseconds; none if
    /// nothing does.
    flush_alone_ns: Option<f64>,
    #[serde(skip)]
    time: Together,
}

/// The longest wait for a processor that is tried, microseconds.
const LONGEST: f64 = 100.0;
/// Steps of each search, each of which halves an interval.
const STEPS: u32 = 60;

impl Many {
    /// If the row is published with many processes.
    pub fn new(
        row: &Row,
        one: &OfRow,
        samples: &BTreeMap<String, Sample>,
        profile: &Profile,
    ) -> Option<Self> {
        let many = row.many.as_ref()?;
        let flushes = sum_of(row, samples, &|s| s.remote_flushes);
        let held_alone = sum_of(row, samples, &|s| s.lock_held_us);
        // Under EPT, too, many processes take longer, by what their kernel's own locks cost: that much
        // is away from this lock.
        let kernel = many.ept_us - row.ept_us?;
        let visits = sum_of(row, samples, &|s| s.lock_visits);
        let alone = Alone { total: one.shadow_us, held: held_alone, visits, flushes };
        let time = Together::new(many.processes, alone, kernel, &profile.software);
        let shadow_us = time.takes(profile.software.remote_flush_ns.value / 1000.0);
        let alone = meeting(|flush| time.takes(flush), many.shadow_us);
        Some(Self {
            name: row.name.clone(),
            processes: many.processes,
            published_ept_us: many.ept_us,
            published_shadow_us: many.shadow_us,
            shadow_us,
            error_percent: 100.0 * (shadow_us / many.shadow_us - 1.0),
            lock_visits: time.visits,
            lock_held_us: held_alone,
            remote_flushes: flushes,
            flush_alone_ns: alone.map(|us| 1000.0 * us),
            time,
        })
    }

    /// Cells of a table, in the order of [`Many::HEADINGS`].
    pub fn cells(&self) -> [String; 8] {
        let whole = |n: f64| format!("{n:.0}");
        [
            format!("{}, {} processes", self.name, self.processes),
            whole(self.published_ept_us),
            whole(self.published_shadow_us),
            whole(self.shadow_us),
            format!("{:+.1}", self.error_percent),
            whole(self.lock_visits),
            whole(self.lock_held_us),
            whole(self.remote_flushes),
        ]
    }

    /// Headings of the cells.
    pub const HEADINGS: [&'static str; 8] = [
        "row",
        "EPT\npublished",
        "shadow\npublished",
        "shadow",
        "error\n%",
        "lock\nvisits",
        "lock held\nby one",
        "remote\nflushes",
    ];

    /// What meets the row alone.
    pub fn alone(&self) -> (&str, Option<f64>) {
        (&self.name, self.flush_alone_ns)
    }
}

/// The least argument from 0 on at which a growing function has a value, if it begins below it.
fn meeting(f: impl Fn(f64) -> f64, value: f64) -> Option<f64> {
    let (mut low, mut high) = (0.0, LONGEST);
    if f(low) > value || f(high) < value {
        return None;
    }
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if f(middle) < value { low = middle } else { high = middle }
    }
    Some(high)
}

/// The wait whose largest relative residual over the rows is least, nanoseconds, and that residual.
/// Each row grows with it, so the largest residual has one minimum.
pub fn fit(rows: &[Many]) -> Option<(f64, f64)> {
    let worst = |flush: f64| {
        let off = rows.iter().map(|r| (r.time.takes(flush) / r.published_shadow_us - 1.0).abs());
        off.fold(0.0, f64::max)
    };
    if rows.is_empty() {
        return None;
    }
    let (mut low, mut high) = (0.0, LONGEST);
    for _ in 0..2 * STEPS {
        let third = (high - low) / 3.0;
        if worst(low + third) <= worst(high - third) {
            high -= third;
        } else {
            low += third;
        }
    }
    Some((1000.0 * low, worst(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_all_wait_for_takes_all_of_their_turns() {
        let time = Together {
            processes: 32.0,
            visits: 10.0,
            held: 20.0,
            called_out: 5.0,
            away: 1.0,
            handoff: 1.0,
        };
        // 32 turns of 20 us, and 10 hand-offs of 1 us in each; and 5 waits of 2 us.
        assert!((time.takes(0.0) / 960.0 - 1.0).abs() < 0.01, "{}", time.takes(0.0));
        assert!((time.takes(2.0) / 1280.0 - 1.0).abs() < 0.01, "{}", time.takes(2.0));
        let alone = meeting(|flush| time.takes(flush), 1280.0).unwrap();
        assert!((alone - 2.0).abs() < 0.1, "{alone}");
        assert_eq!(meeting(|flush| time.takes(flush), 900.0), None);
    }
}
