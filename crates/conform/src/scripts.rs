//! The scripts that come with the program.

const TEXTS: [&str; 2] =
    [include_str!("../scripts/small.txt"), include_str!("../scripts/huge.txt")];

/// Scripts of a text, each behind a line `script NAME`.
#[must_use]
pub fn split(text: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("script ") {
            let name = head.split_whitespace().next().unwrap_or("").to_owned();
            all.push((name, String::new()));
        } else if let Some((_, body)) = all.last_mut() {
            body.push_str(line);
            body.push('\n');
        }
    }
    all
}

/// All of them: name and text.
#[must_use]
pub fn all() -> Vec<(String, String)> {
    TEXTS.iter().flat_map(|text| split(text)).collect()
}
