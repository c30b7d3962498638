//! The evaluation as tables for people.

use super::fit::{Fit, Fitted, WIDE};
use super::many::Many;
use super::{Lmbench, OfRow, WithCpi};
use anyhow::{Result, bail};
use nestwalk_hw::Profile;
use nestwalk_report::{Align, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const NONE: &str = "-";

/// Counts by name.
type Counts = BTreeMap<String, f64>;

/// Microseconds with three digits.
fn us(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn or_none(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.into(), us)
}

/// Counts: whole ones as such, small ones with two digits that say something.
fn times(value: f64) -> String {
    match value.abs() {
        v if v < 0.1 => format!("{value:.4}"),
        v if (v - v.round()).abs() < 0.005 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// Every price of the fit is one of a profile.
///
/// # Errors
/// One is not.
pub fn known(fit: &Fit, profile: &Profile) -> Result<()> {
    for price in &fit.prices {
        if price_of(profile, price).is_none() {
            bail!("data/lmbench.toml: price `{}` is no key of a profile's [software]", price.key);
        }
    }
    Ok(())
}

fn price_of(profile: &Profile, price: &Fitted) -> Option<f64> {
    let key = format!("software.{}", price.key);
    profile.numbers().iter().find(|(k, _)| *k == key).map(|(_, n)| n.value)
}

pub fn table(found: &Lmbench) -> String {
    let mut out = format!(
        "LMbench under EPT and shadow paging, microseconds. Published: {}.\nSimulated: profile {} at {} MHz, \
         recorded guests.\n\n",
        found.source, found.profile, found.frequency_mhz
    );
    out += &times_of(&found.rows);
    out += "\n";
    out += &many_of(&found.many);
    out += "\n";
    out += &counts("shadow: exits of one", &found.rows, |row| &row.exits);
    out += "\n";
    out += &counts("shadow: times paid in one", &found.rows, |row| &row.work);
    if let Some(fit) = &found.fit {
        out += "\n";
        out += &fitted(fit, &found.many);
    }
    out
}

fn times_of(rows: &[OfRow]) -> String {
    let right = Align::Right;
    let mut table = Table::new()
        .column("row", Align::Left)
        .column("native", right)
        .column("EPT\npublished", right)
        .column("nested", right)
        .column("shadow\npublished", right)
        .column("shadow", right)
        .column("difference\npublished", right)
        .column("difference", right)
        .column("error\n%", right);
    for row in rows {
        table.row(vec![
            if row.fitted { row.name.clone() } else { format!("{} (not fitted)", row.name) },
            us(row.native_us),
            or_none(row.published_ept_us),
            us(row.nested_us),
            or_none(row.published_shadow_us),
            us(row.shadow_us),
            or_none(row.published_difference_us),
            us(row.difference_us),
            row.error_percent.map_or_else(|| NONE.into(), |e| format!("{e:+.1}")),
        ]);
    }
    table.render()
}

fn many_of(rows: &[Many]) -> String {
    let mut table = Table::new();
    for (heading, n) in Many::HEADINGS.iter().zip(0..) {
        table = table.column(heading, if n == 0 { Align::Left } else { Align::Right });
    }
    rows.iter().for_each(|row| table.row(row.cells().into()));
    table.render()
}

/// What the differences consist of: a column for each thing that some row has counted.
fn counts(title: &str, rows: &[OfRow], of: fn(&OfRow) -> &Counts) -> String {
    let keys: BTreeSet<&String> = rows.iter().flat_map(|row| of(row).keys()).collect();
    let mut table = Table::new().column(title, Align::Left);
    for key in &keys {
        table = table.column(key, Align::Right);
    }
    for row in rows {
        let mut cells = vec![row.name.clone()];
        let counts = of(row);
        cells
            .extend(keys.iter().map(|k| counts.get(*k).map_or_else(|| NONE.into(), |n| times(*n))));
        table.row(cells);
    }
    table.render()
}

fn fitted(found: &WithCpi, many: &[Many]) -> String {
    let fit = &found.prices;
    let right = Align::Right;
    let wide = format!("all rows within\n{:.0} %", 100.0 * WIDE.max(fit.worst));
    let mut table = Table::new()
        .column("fitted price", Align::Left)
        .column("ns", right)
        .column("at the least\nresidual", right)
        .column(&wide, right)
        .column("", Align::Left);
    for price in &fit.prices {
        let range = |[a, b]: [f64; 2]| format!("{a:.0} to {b:.0}");
        table.row(vec![
            price.key.clone(),
            format!("{:.1}", price.ns),
            range(price.interval),
            range(price.wide),
            price.note.clone(),
        ]);
    }
    let mut out = table.render();
    let _ = writeln!(
        out,
        "\nrank {} of {} free prices; the largest residual is {:.1} % of a published difference",
        fit.rank,
        fit.free,
        100.0 * fit.worst
    );
    let mut table = Table::new()
        .column("row", Align::Left)
        .column("residual of\nthe difference, %", right)
        .column("kernel_cpi that\nmeets EPT alone", right);
    for (name, residual) in &fit.residuals {
        let cpi = found.kernel_cpi_of_rows.iter().find(|(row, _)| row == name);
        table.row(vec![
            name.clone(),
            format!("{:+.1}", 100.0 * residual),
            cpi.map_or_else(|| NONE.into(), |(_, cpi)| format!("{cpi:.2}")),
        ]);
    }
    let _ = writeln!(
        out,
        "kernel_cpi {:.2}: least sum of relative residuals of the EPT column\n\n{}",
        found.kernel_cpi,
        table.render().trim_end()
    );
    if let Some((ns, worst)) = found.remote_flush_ns {
        let alone = many.iter().map(Many::alone).map(|(row, ns)| match ns {
            Some(ns) => format!("{row} {ns:.0}"),
            None => format!("{row} none"),
        });
        let _ = writeln!(
            out,
            "\nremote_flush_ns {ns:.0}: the largest residual is {:.1} % of a row; alone: {}",
            100.0 * worst,
            alone.collect::<Vec<_>>().join(", ")
        );
    }
    out
}
