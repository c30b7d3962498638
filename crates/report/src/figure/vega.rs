//! A figure as Vega-Lite: the numbers, and how they are drawn.

use super::{Axis, Figure, PALETTE, Plot};
use serde_json::{Value, json};

const SCHEMA: &str = "https://vega.github.io/schema/vega-lite/v5.json";

/// What is not finite is null.
fn num(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Colours of parts, as the other formats have them.
fn colours(names: &[String]) -> Value {
    let range: Vec<String> =
        (0..names.len()).map(|i| format!("#{}", PALETTE[i % PALETTE.len()])).collect();
    json!({
        "field": "part", "type": "nominal", "sort": null, "title": null,
        "scale": { "domain": names, "range": range },
    })
}

fn along(field: &str, axis: &Axis) -> Value {
    let kind = if axis.doublings { json!({ "type": "log", "base": 2 }) } else { json!({}) };
    json!({ "field": field, "type": "quantitative", "title": axis.title, "scale": kind })
}

/// None of a drawing.
pub fn vega(figure: &Figure) -> Option<Value> {
    let row = json!({ "field": "name", "type": "nominal", "sort": null, "title": null });
    let (values, mark, encoding): (Vec<Value>, Value, Value) = match &figure.plot {
        Plot::Bars { axis, parts, rows } => {
            let values = rows.iter().flat_map(|(name, values)| {
                let pairs = parts.iter().zip(values).enumerate();
                pairs.map(move |(i, (part, value))| {
                    json!({ "name": name, "part": part, "order": i, "value": num(*value) })
                })
            });
            let mut x = along("value", axis);
            x["stack"] = json!("zero");
            let order = json!({ "field": "order" });
            let encoding = json!({ "y": row, "x": x, "color": colours(parts), "order": order });
            (values.collect(), json!("bar"), encoding)
        }
        Plot::Spans { axis, parts, rows } => {
            let values = rows.iter().flat_map(|(name, spans)| {
                spans.iter().map(move |(from, to, part)| {
                    json!({
                        "name": name, "from": num(*from), "to": num(*to),
                        "part": parts.get(*part),
                    })
                })
            });
            let x = along("from", axis);
            let encoding =
                json!({ "y": row, "x": x, "x2": { "field": "to" }, "color": colours(parts) });
            (values.collect(), json!("bar"), encoding)
        }
        Plot::Lines { x, y, lines } => {
            let names: Vec<String> = lines.iter().map(|l| l.0.clone()).collect();
            let values = lines.iter().flat_map(|(name, points)| {
                points.iter().map(move |(x, y)| json!({ "part": name, "x": num(*x), "y": num(*y) }))
            });
            let encoding =
                json!({ "x": along("x", x), "y": along("y", y), "color": colours(&names) });
            (values.collect(), json!({ "type": "line", "point": true }), encoding)
        }
        Plot::Cells { title, columns, rows } => {
            let values = rows.iter().flat_map(|(name, values)| {
                let known = columns.iter().zip(values).filter_map(|(c, v)| v.map(|v| (c, v)));
                known.map(move |(column, value)| {
                    json!({ "name": name, "column": column, "value": num(value) })
                })
            });
            let column =
                json!({ "field": "column", "type": "nominal", "sort": null, "title": null });
            let shade = json!({ "field": "value", "type": "quantitative", "title": title });
            (values.collect(), json!("rect"), json!({ "y": row, "x": column, "color": shade }))
        }
        Plot::Drawing(..) => return None,
    };
    Some(json!({
        "$schema": SCHEMA,
        "title": figure.title,
        "description": figure.note,
        "data": { "values": values },
        "mark": mark,
        "encoding": encoding,
    }))
}
