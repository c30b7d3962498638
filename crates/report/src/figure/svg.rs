//! A picture as SVG. Text and thin lines have the colour of the text around it.

use super::scene::{Anchor, Ink, Scene, Shape};
use std::fmt::Write;

/// Text as XML and HTML have it, also between quotes. Characters that XML forbids are shown as `?`.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(' '),
            c if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// A length with two decimals at most.
pub(super) fn px(value: f64) -> String {
    if !value.is_finite() {
        return "0".into();
    }
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

fn paint(ink: Ink, attribute: &str) -> String {
    let (colour, opacity) = ink.colour();
    let colour = colour.map_or("currentColor".into(), |hex| format!("#{hex}"));
    let mut out = format!(" {attribute}=\"{colour}\"");
    if opacity < 1.0 {
        let _ = write!(out, " {attribute}-opacity=\"{}\"", px(opacity));
    }
    out
}

fn close(out: &mut String, element: &str, told: &str) {
    if told.is_empty() {
        out.push_str("/>\n");
    } else {
        let _ = writeln!(out, "><title>{}</title></{element}>", escape(told));
    }
}

fn shape(out: &mut String, shape: &Shape) {
    match shape {
        Shape::Rect { at, size, ink, told } => {
            let [x, y, w, h] = [at.0, at.1, size.0, size.1].map(px);
            let fill = paint(*ink, "fill");
            let _ = write!(out, "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\"{fill}");
            close(out, "rect", told);
        }
        Shape::Path { points, ink, width, arrow } => {
            let list: Vec<String> =
                points.iter().map(|p| format!("{},{}", px(p.0), px(p.1))).collect();
            let (stroke, width) = (paint(*ink, "stroke"), px(*width));
            let _ = write!(out, "<polyline points=\"{}\" fill=\"none\"{stroke}", list.join(" "));
            let _ = writeln!(out, " stroke-width=\"{width}\"/>");
            if let (true, [.., from, to]) = (arrow, &points[..]) {
                head(out, *from, *to, *ink);
            }
        }
        Shape::Dot { at, radius, ink, told } => {
            let [x, y, r] = [at.0, at.1, *radius].map(px);
            let _ = write!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{r}\"{}", paint(*ink, "fill"));
            close(out, "circle", told);
        }
        Shape::Text { at, text, anchor, size, upwards } => {
            let [x, y] = [at.0, at.1].map(px);
            let _ = write!(out, "<text x=\"{x}\" y=\"{y}\"");
            match anchor {
                Anchor::Start => {}
                Anchor::Middle => out.push_str(" text-anchor=\"middle\""),
                Anchor::End => out.push_str(" text-anchor=\"end\""),
            }
            if *size != super::scene::FONT {
                let _ = write!(out, " font-size=\"{}\"", px(*size));
            }
            if *upwards {
                let _ = write!(out, " transform=\"rotate(-90 {x} {y})\"");
            }
            let _ = writeln!(out, ">{}</text>", escape(text));
        }
    }
}

/// The head of a line that goes from one point to another.
fn head(out: &mut String, from: (f64, f64), to: (f64, f64), ink: Ink) {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy);
    if length == 0.0 {
        return;
    }
    let (dx, dy) = (dx / length, dy / length);
    let back = (to.0 - 7.0 * dx, to.1 - 7.0 * dy);
    let corners =
        [to, (back.0 - 3.5 * dy, back.1 + 3.5 * dx), (back.0 + 3.5 * dy, back.1 - 3.5 * dx)];
    let list: Vec<String> = corners.iter().map(|p| format!("{},{}", px(p.0), px(p.1))).collect();
    let _ = writeln!(out, "<polygon points=\"{}\"{}/>", list.join(" "), paint(ink, "fill"));
}

/// The picture, as a file of its own or within HTML.
pub fn svg(scene: &Scene) -> String {
    let [w, h] = [scene.size.0, scene.size.1].map(px);
    let title = escape(&scene.title);
    let font = px(super::scene::FONT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
         role=\"img\" font-family=\"sans-serif\" font-size=\"{font}\" fill=\"currentColor\">\n\
         <title>{title}</title>\n"
    );
    for it in &scene.shapes {
        shape(&mut out, it);
    }
    out.push_str("</svg>\n");
    out
}
