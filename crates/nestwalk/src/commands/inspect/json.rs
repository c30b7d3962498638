//! The report for programs. `docs/inspect.md` has every field.

use super::report::{Dimension, Mapping, Report};
use nestwalk_contiguity::SHARES;
use nestwalk_host::{Advice, FrameKinds, PAGE_BYTES};
use serde_json::{Map, Value, json};

/// Everything.
pub fn report(report: &Report) -> Value {
    let mut value = summary(report);
    value["mappings"] = regions(report).into();
    value
}

/// Everything but the mappings.
pub fn summary(report: &Report) -> Value {
    let sizes =
        report.page_sizes().into_iter().map(|(size, bytes)| (size.to_string(), bytes.into()));
    let missing = report
        .missing
        .iter()
        .map(|m| json!({ "what": m.what, "why": m.why, "remedy": m.remedy }))
        .collect::<Vec<_>>();
    let dimensions: Map<String, Value> =
        report.dimensions.iter().map(|d| (d.name.to_owned(), dimension(d))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": report.pid,
        "name": report.name,
        "complete": report.cut.is_none(),
        "frames_shown": !report.hidden,
        "missing": missing,
        "mapped_bytes": report.sum(|m| m.region.bytes()),
        "resident_bytes": report.sum(Mapping::resident),
        "swapped_bytes": report.sum(|m| m.region.swap),
        "present_pages": report.sum(|m| m.region.present),
        "page_size_bytes": Value::Object(sizes.collect()),
        "frames": report.kinds.as_ref().map(kinds),
        "guest": report.guest.as_ref().map(|(name, pid, without)| {
            json!({ "name": name, "pid": pid, "pages_without_frame": without })
        }),
        "dimensions": dimensions,
    })
}

fn kinds(kinds: &FrameKinds) -> Value {
    let folios = kinds.folios.iter().enumerate().filter(|(_, pages)| **pages > 0);
    let folios: Map<String, Value> =
        folios.map(|(order, pages)| ((PAGE_BYTES << order).to_string(), (*pages).into())).collect();
    json!({
        "hugetlb_pages": kinds.hugetlb,
        "thp_pages": kinds.thp,
        "ksm_pages": kinds.ksm,
        "zero_pages": kinds.zero,
        "folio_pages": folios,
    })
}

fn dimension(d: &Dimension) -> Value {
    let bucket = |b: &nestwalk_contiguity::Bucket| json!({ "from_pages": 1u64 << b.order, "runs": b.runs, "pages": b.pages });
    let entries = |pieces: &nestwalk_contiguity::Pieces| -> Map<String, Value> {
        let shares = SHARES.into_iter().zip(pieces.shares());
        shares.map(|(percent, entries)| (percent.to_string(), entries.into())).collect()
    };
    let techniques: Map<String, Value> = d
        .survey
        .techniques
        .iter()
        .map(|(name, pieces)| ((*name).to_owned(), Value::Object(entries(pieces))))
        .collect();
    json!({
        "from": d.spaces[0],
        "to": d.spaces[1],
        "pages": d.runs.pages(),
        "runs": d.runs.len(),
        "longest_pages": d.longest() / PAGE_BYTES,
        "histogram": d.histogram.buckets.iter().map(bucket).collect::<Vec<_>>(),
        "anchor_distance_pages": d.survey.distance,
        "entries": techniques,
    })
}

/// An object per mapping.
pub fn regions(report: &Report) -> Vec<Value> {
    let region = |m: &Mapping| {
        let r = &m.region;
        json!({
            "start": format!("{:#x}", r.start),
            "end": format!("{:#x}", r.end),
            "permissions": r.permissions,
            "name": r.name,
            "bytes": r.bytes(),
            "resident_bytes": m.resident(),
            "swapped_bytes": r.swap,
            "huge_bytes": r.huge,
            "hugetlb_bytes": r.hugetlb,
            "page_bytes": r.page_bytes,
            "advice": r.advice.map(advice),
            "present_pages": r.present,
            "swapped_pages": r.swapped,
            "runs": m.runs,
            "longest_pages": m.longest / PAGE_BYTES,
        })
    };
    report.mappings.iter().map(region).collect()
}

fn advice(advice: Advice) -> &'static str {
    match advice {
        Advice::Huge => "huge",
        Advice::NoHuge => "no-huge",
    }
}
