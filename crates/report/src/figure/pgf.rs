//! A picture as PGF: `\input` it where `tikz` is loaded.

use super::scene::{Anchor, Ink, PALETTE, Scene, Shape};
use super::svg::px;
use std::fmt::Write;

/// Big points per pixel: 12 pixels of text become 9 points.
const SCALE: f64 = 0.75;

/// Text as LaTeX has it.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            '"' => out.push_str("\\textquotedbl{}"),
            '→' => out.push_str("$\\rightarrow$"),
            '↔' => out.push_str("$\\leftrightarrow$"),
            '×' => out.push_str("$\\times$"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn paint(ink: Ink) -> String {
    let (colour, opacity) = ink.colour();
    let name = match (ink, colour) {
        (Ink::Part(n) | Ink::Pale(n), Some(_)) => format!("nestwalk{}", n % PALETTE.len()),
        (_, Some(_)) => "nestwalk0".into(),
        (_, None) => "black".into(),
    };
    if opacity < 1.0 { format!("{name},opacity={}", px(opacity)) } else { name }
}

fn point((x, y): (f64, f64)) -> String {
    format!("({},{})", px(x), px(y))
}

fn shape(out: &mut String, shape: &Shape) {
    let _ = match shape {
        Shape::Rect { at, size, ink, .. } => {
            let end = (at.0 + size.0, at.1 + size.1);
            writeln!(out, "\\fill[{}] {} rectangle {};", paint(*ink), point(*at), point(end))
        }
        Shape::Path { points, ink, width, arrow } => {
            let list: Vec<String> = points.iter().copied().map(point).collect();
            let (ink, width) = (paint(*ink), px(width * SCALE));
            let arrow = if *arrow { ",->" } else { "" };
            writeln!(out, "\\draw[{ink},line width={width}bp{arrow}] {};", list.join(" -- "))
        }
        Shape::Dot { at, radius, ink, .. } => {
            let radius = px(radius * SCALE);
            writeln!(out, "\\fill[{}] {} circle[radius={radius}bp];", paint(*ink), point(*at))
        }
        Shape::Text { at, text, anchor, size, upwards } => {
            let side = match anchor {
                Anchor::Start => "base west",
                Anchor::Middle => "base",
                Anchor::End => "base east",
            };
            let turned = if *upwards { ",rotate=90" } else { "" };
            let (size, line) = (px(size * SCALE), px(size * SCALE * 1.2));
            let font = format!("\\fontsize{{{size}}}{{{line}}}\\selectfont");
            let (at, text) = (point(*at), escape(text));
            writeln!(
                out,
                "\\node[anchor={side},inner sep=0pt,font={font}{turned}] at {at} {{{text}}};"
            )
        }
    };
}

/// The picture.
pub fn pgf(scene: &Scene) -> String {
    let title = scene.title.replace(char::is_control, " ");
    let mut out =
        format!("% {title}. Needs \\usepackage{{tikz}} and \\usepackage[T1]{{fontenc}}.\n");
    for (i, hex) in PALETTE.iter().enumerate() {
        let _ = writeln!(out, "\\definecolor{{nestwalk{i}}}{{HTML}}{{{hex}}}");
    }
    let _ = writeln!(out, "\\begin{{tikzpicture}}[x={SCALE}bp,y=-{SCALE}bp]");
    for it in &scene.shapes {
        shape(&mut out, it);
    }
    out.push_str("\\end{tikzpicture}\n");
    out
}
