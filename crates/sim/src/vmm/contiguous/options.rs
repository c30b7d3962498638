//! What can be set of schemes that use contiguity: `name=value` parts with `/` between them.

/// A key with its values and their meaning, as the catalogue has it.
pub type Key = (&'static str, &'static str, &'static str);

/// Gives each part to `set`, which says what is wrong with a value.
///
/// # Errors
/// What is wrong, and what there is.
pub fn parse(
    scheme: &str,
    keys: &[Key],
    text: &str,
    mut set: impl FnMut(&str, &str) -> Result<(), String>,
) -> Result<(), String> {
    let known = || keys.iter().map(|k| format!("{}={}", k.0, k.1)).collect::<Vec<_>>().join(", ");
    for part in text.split('/').filter(|p| !p.is_empty()) {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is no `name=value`; there are: {}", known()))?;
        if !keys.iter().any(|k| k.0 == name) {
            return Err(format!("{scheme} has no `{name}`; there are: {}", known()));
        }
        set(name, value).map_err(|what| format!("{scheme}: {name}={value}: {what}"))?;
    }
    Ok(())
}

/// A whole number within bounds.
///
/// # Errors
/// It is none; the bounds.
pub fn whole(value: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = value.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("not a whole number from {least} to {most}"))
}

/// The parts that differ from their defaults, joined as [`parse`] reads them.
pub fn spelt(parts: impl IntoIterator<Item = (bool, String)>) -> String {
    let parts = parts.into_iter().filter(|p| p.0).map(|p| p.1);
    parts.collect::<Vec<_>>().join("/")
}
