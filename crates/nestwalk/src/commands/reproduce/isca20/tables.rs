//! The evaluation for people.

use super::super::bars::{Transposed, published};
use super::contiguity::{POLICIES, Setup};
use super::{BARS, Bar, Isca20};
use nestwalk_report::{Align, Table, bytes, count};

const RIGHT: Align = Align::Right;

/// Everything.
pub fn all(found: &Isca20) -> String {
    let mut out = format!(
        "Enhancing and Exploiting Contiguity for Fast Memory Virtualization (ISCA 2020). Profile {}.\n\n",
        found.profile
    );
    out += &overheads(found);
    out += &predictions(found);
    out += &contiguity(found);
    out += &checks(found);
    out += &published(found.published);
    out + &details(found)
}

fn overheads(found: &Isca20) -> String {
    let mut out = String::new();
    type Shown = (&'static str, fn(&Bar) -> f64, fn(&Bar) -> String);
    let figures: [Shown; 2] = [
        ("walks, %", |b| b.walks_percent, |b| format!("{:.2}", b.walks_percent)),
        ("overhead, %", |b| b.total_percent, |b| format!("{:.2}", b.total_percent)),
    ];
    for (title, number, cell) in figures {
        let programs = found.programs.iter().map(|p| (p.program.as_str(), p.bars.as_slice()));
        let figure = Transposed {
            title,
            programs: programs.collect(),
            name: |bar| bar.bar,
            number,
            cell,
            mean: true,
        };
        let table = figure.table(BARS.iter().map(|(name, _, what)| (*name, Some(*what))));
        out += &format!("{}\n", table.render());
    }
    out + "Walks: what the program waits for page walks and wrong guesses, percent of the ideal run time, which is \
           what the\npapers' linear models count. Overhead: everything above ideal, hits of the second-level TLB and \
           what tables displace\nfrom the caches, too.\n\n"
}

fn predictions(found: &Isca20) -> String {
    let mut table = Table::new()
        .column("SpOT", Align::Left)
        .column("walks", RIGHT)
        .column("hidden, %", RIGHT)
        .column("wrong guess, %", RIGHT)
        .column("no guess, %", RIGHT)
        .column("cycles hidden, %", RIGHT);
    let mut any = false;
    for program in &found.programs {
        let Some(bar) = program.bars.iter().find(|b| b.bar == "SpOT") else { continue };
        let (Some(right), Some(wrong), Some(hidden)) =
            (bar.predicted_percent, bar.mispredicted_percent, bar.hidden_percent)
        else {
            continue;
        };
        any = true;
        table.row(vec![
            program.program.clone(),
            count(bar.walks),
            format!("{right:.2}"),
            format!("{wrong:.2}"),
            format!("{:.2}", 100.0 - right - wrong),
            format!("{hidden:.2}"),
        ]);
    }
    if any { format!("{}\n", table.render()) } else { String::new() }
}

fn contiguity(found: &Isca20) -> String {
    let mut out = String::new();
    let setups: Vec<&Setup> = super::contiguity::ALL.iter().collect();
    for setup in setups {
        let mut table = Table::new()
            .column("entries for 99 %", Align::Left)
            .column("placement", Align::Left)
            .column("mapped", RIGHT)
            .column("guest\nranges", RIGHT)
            .column("both\nranges", RIGHT)
            .column("\noffsets", RIGHT)
            .column("\nanchors", RIGHT)
            .column("\nup to 2 MiB", RIGHT)
            .column("longest\nin both", RIGHT)
            .column("never\nused", RIGHT)
            .column("pages\nmoved", RIGHT)
            .column("most at once,\nus", RIGHT);
        let mut any = false;
        for program in &found.programs {
            for line in program.contiguity.iter().filter(|l| l.setup == setup.name) {
                any = true;
                let guest = line.guest.get("ranges").and_then(|e| e.get(&99)).copied();
                table.row(vec![
                    program.program.clone(),
                    line.policy.into(),
                    bytes(line.mapped_bytes),
                    count(guest.unwrap_or(0)),
                    count(line.for_99("ranges")),
                    count(line.for_99("offsets")),
                    count(line.for_99("anchors")),
                    count(line.for_99("2m")),
                    bytes(line.longest_bytes[1]),
                    bytes(line.bloat_bytes),
                    count(line.migrated_pages),
                    format!("{:.0}", line.most_at_once_us),
                ]);
            }
        }
        if any {
            out += &format!("Mappings, {}: {}\n\n{}\n", setup.name, setup.what, table.render());
        }
    }
    if !out.is_empty() {
        out += "Placement is the same in guest and host, with huge pages: ";
        let names: Vec<String> = POLICIES.iter().map(|(n, what)| format!("{n}, {what}")).collect();
        out += &names.join("; ");
        out += ".\nRanges of the guest are what a machine without a hypervisor would have.\n\n";
    }
    out
}

fn checks(found: &Isca20) -> String {
    let mut table = Table::new()
        .column("check", Align::Left)
        .column("published", Align::Left)
        .column("measured", RIGHT)
        .column("unit", Align::Left)
        .column("worst", RIGHT)
        .column("of", Align::Left)
        .column("bounds", RIGHT)
        .column("within", Align::Left);
    let plain = |n: f64| match n {
        n if n >= 1e15 => "any".into(),
        n if n.fract() == 0.0 => count(n as u64),
        n => format!("{n:.2}"),
    };
    for c in &found.checks {
        table.row(vec![
            c.what.into(),
            c.published.into(),
            plain(c.measured),
            c.unit.into(),
            plain(c.worst.1),
            c.worst.0.clone(),
            c.bounds.map_or("-".into(), |[low, high]| format!("{} to {}", plain(low), plain(high))),
            c.within.map_or("-", |within| if within { "yes" } else { "NO" }).into(),
        ]);
    }
    format!(
        "{}Without bounds: it depends on how much memory programs have, 30 to 167 GB in the paper.\n\n",
        table.render()
    )
}

fn details(found: &Isca20) -> String {
    let Some(first) = found.details.first() else { return String::new() };
    let mut table = Table::new()
        .column("parameter", Align::Left)
        .column("value", RIGHT)
        .column("walks, %", RIGHT)
        .column("overhead, %", RIGHT)
        .column("hidden, %", RIGHT)
        .column("wrong guess, %", RIGHT);
    for d in &found.details {
        table.row(vec![
            d.parameter.into(),
            d.value.into(),
            format!("{:.2}", d.walks_percent),
            format!("{:.2}", d.total_percent),
            format!("{:.2}", d.predicted_percent),
            format!("{:.2}", d.mispredicted_percent),
        ]);
    }
    format!(
        "\nHow much depends on what the papers do not say: {}\n\n{}",
        first.program,
        table.render()
    )
}
