//! The evaluation for people.

use super::super::bars::{Transposed, published};
use super::{BIG_MEMORY, Bar, COMPUTE, CONFIGURATIONS, Micro14, OfProgram, RECORDED};
use nestwalk_report::{Align, Table, bytes, count};

/// Bars whose counts are shown: what the claims are about, and what they are held against.
const EXPLAINED: [&str; 7] = ["4K", "4K+4K", "DS", "DD", "4K+VD", "4K+GD", "THP+VD"];

/// Everything.
pub fn all(found: &Micro14) -> String {
    let mut out = format!(
        "Efficient Memory Virtualization (MICRO 2014). Profile {}. Overhead = page walks + VMM, percent of \
         the ideal run time.\nA+B has guest pages A and VMM pages B; DS is a direct segment on bare metal, \
         DD Dual Direct, VD VMM Direct, GD Guest Direct.\n\n",
        found.profile
    );
    for program in &found.programs {
        out += &format!("{:10} {}\n", program.program, program.stands_for);
    }
    out.push('\n');
    for group in [BIG_MEMORY, COMPUTE, RECORDED] {
        let of: Vec<&OfProgram> = found.programs.iter().filter(|p| p.group == group).collect();
        if !of.is_empty() {
            out += &figure(group, &of);
        }
    }
    out += &published(found.published);
    out += &checks(found);
    out += &counts(found);
    out += &plot(found);
    out += &details(found);
    out + &scenarios(found)
}

fn figure(group: &str, programs: &[&OfProgram]) -> String {
    let figure = Transposed {
        title: "overhead, %",
        programs: programs.iter().map(|p| (p.program.as_str(), p.bars.as_slice())).collect(),
        name: |bar| &bar.bar,
        number: |bar| bar.total_percent,
        cell: total,
        mean: programs.len() > 1,
    };
    let table = figure.table(CONFIGURATIONS.iter().map(|(name, _)| (*name, None)));
    format!("The {group} programs\n\n{}\n", table.render())
}

/// The VMM's part is told where there is one.
fn total(bar: &Bar) -> String {
    match bar.vmm_percent {
        v if v >= 0.005 => format!("{:.2}+{v:.2} = {:.2}", bar.walk_percent, bar.total_percent),
        _ => format!("{:.2}", bar.total_percent),
    }
}

fn checks(found: &Micro14) -> String {
    if found.checks.is_empty() {
        return "\n".into();
    }
    let mut table = Table::new()
        .column("check, big-memory programs", Align::Left)
        .column("published", Align::Left)
        .column("measured, %", Align::Right)
        .column("highest, %", Align::Right)
        .column("of", Align::Left)
        .column("bounds, %", Align::Right)
        .column("within", Align::Left);
    for c in &found.checks {
        table.row(vec![
            c.what.into(),
            c.published.into(),
            format!("{:.3}", c.measured_percent),
            format!("{:.3}", c.highest_percent),
            c.highest_of.clone(),
            format!("{} to {}", c.bounds_percent[0], c.bounds_percent[1]),
            if c.within { "yes" } else { "NO" }.into(),
        ]);
    }
    let mut out = format!("\n{}", table.render());
    for c in found.checks.iter().filter(|c| !c.within) {
        out += &format!("{}, {}: {}\n", c.what, c.highest_of, c.why);
    }
    out + "\n"
}

fn counts(found: &Micro14) -> String {
    let mut table = Table::new()
        .column("why", Align::Left)
        .column("bar", Align::Left)
        .column("over native, %", Align::Right)
        .column("L1 TLB MPKI", Align::Right)
        .column("L2 TLB hits, %", Align::Right)
        .column("segment hits, %", Align::Right)
        .column("walks", Align::Right)
        .column("refs/walk", Align::Right)
        .column("cycles/walk", Align::Right)
        .column("checks gVA", Align::Right)
        .column("checks gPA", Align::Right)
        .column("outside, %", Align::Right);
    for program in &found.programs {
        for bar in program.bars.iter().filter(|b| EXPLAINED.contains(&b.bar.as_str())) {
            table.row(vec![
                program.program.clone(),
                bar.bar.clone(),
                format!("{:+.2}", bar.more.over_native_percent),
                format!("{:.2}", bar.more.l1_tlb_mpki),
                format!("{:.1}", bar.more.l2_tlb_hits_percent),
                format!("{:.2}", bar.more.segment_hits_percent),
                count(bar.more.walks),
                format!("{:.2}", bar.more.refs_per_walk),
                format!("{:.0}", bar.more.cycles_per_walk),
                count(bar.more.guest_segment_checks),
                count(bar.more.vmm_segment_checks),
                bar.more.outside_percent.map_or("-".into(), |p| format!("{p:.3}")),
            ]);
        }
    }
    format!(
        "Counts behind it. Outside: DS and DD, first-level misses that no segment served; VD, guest-physical \
         look-ups\noutside of the VMM's segment; GD, 0 if no walk read a guest table.\n\n{}\n",
        table.render()
    )
}

fn plot(found: &Micro14) -> String {
    let Some(first) = found.escape_filter.first() else { return String::new() };
    let mut table = Table::new()
        .column("slowdown, %", Align::Left)
        .column("", Align::Left)
        .column("bad pages", Align::Right)
        .column("mean", Align::Right)
        .column("lowest", Align::Right)
        .column("highest", Align::Right)
        .column("pages reported, %", Align::Right)
        .column("false positives in theory, %", Align::Right)
        .column("checks that escaped, %", Align::Right);
    for (plot, line) in found.escape_filter.iter().flat_map(|p| p.lines.iter().map(move |l| (p, l)))
    {
        for p in &line.points {
            table.row(vec![
                plot.program.clone(),
                line.scheme.into(),
                p.bad_pages.to_string(),
                format!("{:.4}", p.mean_percent),
                format!("{:.4}", p.lowest_percent),
                format!("{:.4}", p.highest_percent),
                format!("{:.4}", p.reported_percent),
                format!("{:.4}", p.false_positive_percent),
                format!("{:.4}", p.escapes_percent),
            ]);
        }
    }
    let [bits, hashes] = first.geometry;
    format!(
        "Slowdown by bad pages in the VMM's segment: a filter of {bits} bits and {hashes} functions, {} \
         random sets of pages and functions\n\n{}\n",
        first.seeds,
        table.render()
    )
}

/// Segments before and after memory was made contiguous.
fn scenarios(found: &Micro14) -> String {
    if found.scenarios.is_empty() {
        return String::new();
    }
    let mut table = Table::new()
        .column("scenario", Align::Left)
        .column("", Align::Left)
        .column("machine", Align::Left)
        .column("guest segment", Align::Right)
        .column("VMM segment", Align::Right)
        .column("of guest memory, %", Align::Right)
        .column("overhead, %", Align::Right)
        .column("balloon pages", Align::Right);
    for s in &found.scenarios {
        table.row(vec![
            s.scenario.into(),
            s.step.into(),
            s.machine.clone(),
            bytes(s.guest_segment_bytes),
            bytes(s.vmm_segment_bytes),
            format!("{:.1}", s.vmm_percent),
            format!("{:.2}", s.total_percent),
            count(s.balloon_pages),
        ]);
    }
    format!("How contiguous memory comes to be\n\n{}", table.render())
}

fn details(found: &Micro14) -> String {
    let Some(details) = &found.details else { return String::new() };
    let mut table = Table::new()
        .column("parameter", Align::Left)
        .column("value", Align::Right)
        .column("bar", Align::Left)
        .column("overhead, %", Align::Right)
        .column("over native, %", Align::Right);
    for r in &details.rows {
        table.row(vec![
            r.parameter.into(),
            r.value.clone(),
            r.bar.into(),
            format!("{:.2}", r.total_percent),
            format!("{:+.2}", r.over_native_percent),
        ]);
    }
    format!(
        "How much depends on what the paper does not say: {}\n\n{}",
        details.program,
        table.render()
    )
}
