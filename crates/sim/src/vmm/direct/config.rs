//! What follows the scheme's name: `xen-pv/batch=32`.

/// Updates that Linux queues before it asks (`MC_BATCH`, `arch/x86/xen/multicalls.c`).
pub const BATCH: usize = 32;

/// Most that may be asked for.
const MOST: usize = 4096;

/// What may be set after the name.
pub const KEYS: &[(&str, &str, &str)] = &[(
    "batch",
    "1 to 4096",
    "updates of leaf entries that go into one hypercall; 1: each by itself",
)];

/// Reads the number of updates to a hypercall.
///
/// # Errors
/// What is wrong and what would be right.
pub fn parse(text: &str) -> Result<usize, String> {
    let mut batch = None;
    for part in text.split('/').filter(|p| !p.is_empty()) {
        let Some(("batch", value)) = part.split_once('=') else {
            return Err(format!("there is nothing to set by `/{part}`; there is: batch=N"));
        };
        let number = value.parse().ok().filter(|n| (1..=MOST).contains(n));
        let number =
            number.ok_or_else(|| format!("batch={value}: give a number from 1 to {MOST}"))?;
        if batch.replace(number).is_some() {
            return Err("`batch` is set twice".into());
        }
    }
    Ok(batch.unwrap_or(BATCH))
}
