//! Where profiles come from: built-in files, files of the user, and what each takes from its base.

use super::{Profile, ProfileError};
use std::path::Path;
use toml::{Table, Value};

/// The profiles that are built in: name and text.
pub static BUILT_IN: &[(&str, &str)] = &[
    ("cascade-lake-6252", include_str!("../../profiles/cascade-lake-6252.toml")),
    ("kaby-lake-i5-7600", include_str!("../../profiles/kaby-lake-i5-7600.toml")),
    ("sandy-bridge-e5-2430", include_str!("../../profiles/sandy-bridge-e5-2430.toml")),
    ("golden-cove", include_str!("../../profiles/golden-cove.toml")),
    ("zen2", include_str!("../../profiles/zen2.toml")),
    ("zen3", include_str!("../../profiles/zen3.toml")),
    ("zen4", include_str!("../../profiles/zen4.toml")),
    ("zen5", include_str!("../../profiles/zen5.toml")),
];

/// Older names of built-in profiles, each with today's.
pub static ALIASES: &[(&str, &str)] = &[("skylake-i5-7600", "kaby-lake-i5-7600")];

/// What built-in profiles have in common; no profile by itself.
static PARTS: &[(&str, &str)] = &[("common", include_str!("../../profiles/common.toml"))];

/// In the place of a table of the base: it does not exist.
const NONE: &str = "none";

/// Whether a name is that of a built-in profile, today's or an older one.
pub fn is_built_in(name: &str) -> bool {
    built_in(name).is_some()
}

fn built_in(name: &str) -> Option<&'static (&'static str, &'static str)> {
    let name = ALIASES.iter().find(|a| a.0 == name).map_or(name, |a| a.1);
    BUILT_IN.iter().find(|b| b.0 == name)
}

fn known() -> String {
    BUILT_IN.iter().map(|b| b.0).collect::<Vec<_>>().join(", ")
}

fn read(path: &str) -> Result<String, ProfileError> {
    std::fs::read_to_string(path).map_err(|source| ProfileError::Read { path: path.into(), source })
}

fn table(path: &str, text: &str) -> Result<Table, ProfileError> {
    toml::from_str(text).map_err(|e| ProfileError::Parse { path: path.into(), source: Box::new(e) })
}

impl Profile {
    /// A built-in profile by name, or one from a file.
    ///
    /// # Errors
    /// See [`ProfileError`].
    // Inline, as is `parse`: the code that reads TOML into profiles is then compiled in the crate that
    // asks for one, which need not be optimised, and not in this one, which must be.
    #[inline]
    pub fn load(name: &str) -> Result<Self, ProfileError> {
        if let Some((name, text)) = built_in(name) {
            return Self::parse(name, text);
        }
        if !name.ends_with(".toml") {
            return Err(ProfileError::Unknown { name: name.into(), known: known() });
        }
        Self::parse(name, &read(name)?)
    }

    /// Reads and checks a profile. `path` is for messages; a base that is a file is looked for beside
    /// it.
    ///
    /// # Errors
    /// See [`ProfileError`].
    #[inline]
    pub fn parse(path: &str, text: &str) -> Result<Self, ProfileError> {
        let own = table(path, text)?;
        let parse = |e| ProfileError::Parse { path: path.into(), source: Box::new(e) };
        let profile: Self = if own.contains_key("base") {
            let mut whole = with_base(path, own.clone(), &mut Vec::new())?;
            name_after_file(path, &own, &mut whole);
            whole.try_into().map_err(|e: toml::de::Error| ProfileError::Parse {
                path: line_of(text, e.message())
                    .map_or(path.into(), |n| format!("{path}: line {n}")),
                source: Box::new(e),
            })?
        } else {
            // From the text, so that messages have its lines.
            toml::from_str(text).map_err(parse)?
        };
        profile.check(path)?;
        Ok(profile)
    }
}

/// A profile's table over that of its base, and so on.
fn with_base(path: &str, mut own: Table, chain: &mut Vec<String>) -> Result<Table, ProfileError> {
    let wrong = |problem: String| ProfileError::Base { path: path.into(), problem };
    chain.push(path.into());
    let Some(base) = own.remove("base") else { return Ok(own) };
    let Value::String(base) = base else {
        return Err(wrong(format!("it is no name: use one of {}, or a file", known())));
    };
    let (name, text) = if let Some((name, text)) = built_in(&base) {
        ((*name).to_owned(), (*text).to_owned())
    } else if let Some((name, text)) = PARTS.iter().find(|p| p.0 == base) {
        ((*name).to_owned(), (*text).to_owned())
    } else if base.ends_with(".toml") {
        let beside =
            Path::new(path).parent().map_or_else(|| base.clone().into(), |d| d.join(&base));
        let name = beside.to_string_lossy().into_owned();
        if !beside.exists() {
            return Err(wrong(format!("there is no file {name}")));
        }
        let text = read(&name)?;
        (name, text)
    } else {
        return Err(wrong(format!(
            "no profile `{base}`; there are: {}; or give the path of a .toml file",
            known()
        )));
    };
    let same = |a: &str| match (Path::new(a).canonicalize(), Path::new(&name).canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == name,
    };
    if chain.iter().any(|passed| same(passed)) {
        let circle = format!("{} → {name}", chain.join(" → "));
        return Err(wrong(format!("{circle} is a circle: one of them must do without")));
    }
    let mut whole = with_base(&name, table(&name, &text)?, chain)?;
    lay_over(&mut whole, own);
    Ok(whole)
}

/// Puts what a profile says over what its base says. A table with a source is one statement, and is
/// replaced whole: a number never keeps the source of another.
fn lay_over(base: &mut Table, own: Table) {
    for (key, value) in own {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(_) | Value::Array(_)), Value::String(word)) if word == NONE => {
                base.remove(&key);
            }
            (Some(Value::Table(under)), Value::Table(over)) if !under.contains_key("source") => {
                lay_over(under, over);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// The line of a profile's own text in which the key stands that a message is about: a table that was
/// laid over another has no lines any more.
fn line_of(text: &str, message: &str) -> Option<usize> {
    let key = message.split('`').nth(1)?;
    let names = |line: &str| {
        let code = line.split(['#', '"']).next().unwrap_or_default();
        code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').any(|word| word == key)
    };
    text.lines().position(names).map(|n| n + 1)
}

/// A profile that names only what it changes has the name of its file, and says what it is.
fn name_after_file(path: &str, own: &Table, whole: &mut Table) {
    if !own.contains_key("name") {
        let stem = Path::new(path).file_stem().map_or(path.into(), |s| s.to_string_lossy());
        whole.insert("name".into(), Value::String(stem.into_owned()));
    }
    if !own.contains_key("description")
        && let (Some(base), Some(was)) =
            (own.get("base").and_then(Value::as_str), whole.get("description"))
    {
        let was = was.as_str().unwrap_or_default();
        let keys = own.keys().filter(|k| !["base", "name"].contains(&k.as_str()));
        let keys: Vec<&str> = keys.map(String::as_str).collect();
        let changed = if keys.is_empty() { "nothing".into() } else { keys.join(", ") };
        let text = format!("{was}: {base} with its own {changed}");
        whole.insert("description".into(), Value::String(text));
    }
}
