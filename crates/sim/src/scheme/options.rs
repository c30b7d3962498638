//! Options of schemes: `name=value` parts with `/` between them, as names of machines spell them.
//!
//! An option is one row of its scheme's [`OptionTable`]. Reading, spelling back, help, and the refusal
//! of unknown names and of second values follow from the row, alike for every scheme.

use std::fmt;

/// Name of an option, its values, and its meaning with its default.
pub type Key = (&'static str, &'static str, &'static str);

/// An option of a scheme that is set up by a `C`.
pub struct OptionRow<C> {
    /// Name.
    pub name: &'static str,
    /// Values, in words.
    pub values: &'static str,
    /// Meaning, unit, and default.
    pub meaning: &'static str,
    /// Reads a value, or says what is wrong with it.
    pub set: fn(&mut C, &str) -> Result<(), String>,
    /// The value, as `set` reads it. Where another option makes this one void: its default.
    pub get: fn(&C) -> String,
}

/// All options of a scheme.
pub struct OptionTable<C: 'static> {
    /// In the order in which names of machines spell them.
    pub rows: &'static [OptionRow<C>],
    /// The option whose value may stand without its name.
    pub bare: Option<&'static str>,
    /// Refuses values that do not go together.
    pub check: fn(&C) -> Result<(), String>,
}

impl<C: Default> OptionTable<C> {
    /// Of these rows, whose values all go together.
    pub const fn new(rows: &'static [OptionRow<C>]) -> Self {
        Self { rows, bare: None, check: |_| Ok(()) }
    }

    /// Reads `text`; options without a value have their defaults.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(&self, text: &str) -> Result<C, String> {
        self.parse_parts(parts(text))
    }

    /// As [`OptionTable::parse`], of parts.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse_parts<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Result<C, String> {
        self.parse_beside(parts, &[])
    }

    /// As [`OptionTable::parse_parts`], where `beside` are options of another table, which were taken
    /// before: an unknown one is answered with all that there are.
    fn parse_beside<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a str>,
        beside: &[Key],
    ) -> Result<C, String> {
        let (config, rest) = self.take(parts)?;
        match rest.first() {
            None => Ok(config),
            Some(part) => Err(unknown(part, &[&self.keys(), beside].concat())),
        }
    }

    /// Reads what is an option of this table, and gives the other parts back.
    ///
    /// # Errors
    /// As [`OptionTable::parse`].
    pub fn take<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a str>,
    ) -> Result<(C, Vec<&'a str>), String> {
        self.take_from(&mut parts.into_iter())
    }

    fn take_from<'a>(
        &self,
        parts: &mut dyn Iterator<Item = &'a str>,
    ) -> Result<(C, Vec<&'a str>), String> {
        let mut config = C::default();
        let names: Vec<&str> = self.rows.iter().map(|row| row.name).collect();
        let mut set = |row: usize, value: &str| (self.rows[row].set)(&mut config, value);
        let rest = read(&names, self.bare, parts, &mut set)?;
        (self.check)(&config)?;
        Ok((config, rest))
    }

    /// Whether the rows read each value of `config`, which came by another way.
    ///
    /// # Errors
    /// As [`OptionTable::parse`].
    pub fn admits(&self, config: &C) -> Result<(), String> {
        let mut read = C::default();
        for OptionRow { name, set, get, .. } in self.rows {
            let value = get(config);
            set(&mut read, &value).map_err(|what| wrong(name, &value, &what))?;
        }
        (self.check)(config)
    }

    /// The options that differ from their defaults, as [`OptionTable::parse`] reads them.
    pub fn spell(&self, config: &C) -> String {
        let default = C::default();
        let mut spelled = String::new();
        for OptionRow { name, get, .. } in self.rows {
            spell(&mut spelled, name, self.bare, (get(config), get(&default)));
        }
        spelled
    }
}

fn wrong(name: &str, value: &str, what: &str) -> String {
    format!("{name}={value}: {what}")
}

/// Adds a value that is not the default.
fn spell(out: &mut String, name: &str, bare: Option<&str>, (value, default): (String, String)) {
    if value == default {
        return;
    }
    if !out.is_empty() {
        out.push('/');
    }
    if bare != Some(name) {
        out.push_str(name);
        out.push('=');
    }
    out.push_str(&value);
}

/// There is no such option.
fn unknown(part: &str, keys: &[Key]) -> String {
    if keys.is_empty() {
        return format!("there is only one kind, and nothing to set: leave `/{part}` out");
    }
    let known = keys.iter().map(|(name, values, _)| format!("{name}={values}"));
    let known = known.collect::<Vec<_>>().join(", ");
    match part.split_once('=') {
        Some((name, _)) => format!("there is no option `{name}`; there are: {known}"),
        None => format!("`{part}` is not name=value; there are: {known}"),
    }
}

/// Sets each part that is an option of these names, once at most; returns the others. Of all tables
/// alike: compiled once.
fn read<'a>(
    names: &[&str],
    bare: Option<&str>,
    parts: &mut dyn Iterator<Item = &'a str>,
    set: &mut dyn FnMut(usize, &str) -> Result<(), String>,
) -> Result<Vec<&'a str>, String> {
    let (mut given, mut rest) = (vec![false; names.len()], Vec::new());
    for part in parts {
        let named = part.split_once('=').or_else(|| bare.map(|name| (name, part)));
        let found = named.and_then(|(name, value)| {
            Some((names.iter().position(|known| *known == name)?, value))
        });
        let Some((index, value)) = found else {
            rest.push(part);
            continue;
        };
        let name = names[index];
        set(index, value).map_err(|what| wrong(name, value, &what))?;
        if std::mem::replace(&mut given[index], true) {
            return Err(format!("{name} is given twice"));
        }
    }
    Ok(rest)
}

impl<C> fmt::Debug for OptionTable<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rows.iter().map(|row| row.name)).finish()
    }
}

/// Options of a scheme, whatever sets it up.
pub trait SchemeOptions: fmt::Debug + Sync {
    /// All of them.
    fn keys(&self) -> Vec<Key>;

    /// The one spelling of what `text` says: machines that are set up alike have one name.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    fn normalize(&self, text: &str) -> Result<String, String>;

    /// As [`SchemeOptions::normalize`], where a machine's name may have the options `beside`, too, which
    /// are not in `text`: whoever asks for an unknown one is told all.
    ///
    /// # Errors
    /// As [`SchemeOptions::normalize`].
    fn normalize_beside(&self, text: &str, beside: &[Key]) -> Result<String, String> {
        let _ = beside;
        self.normalize(text)
    }
}

impl<C: Default> SchemeOptions for OptionTable<C> {
    fn keys(&self) -> Vec<Key> {
        self.rows.iter().map(|row| (row.name, row.values, row.meaning)).collect()
    }

    fn normalize(&self, text: &str) -> Result<String, String> {
        self.normalize_beside(text, &[])
    }

    fn normalize_beside(&self, text: &str, beside: &[Key]) -> Result<String, String> {
        self.parse_beside(parts(text), beside).map(|config| self.spell(&config))
    }
}

/// Of a scheme without options.
pub static NO_OPTIONS: OptionTable<()> = OptionTable::new(&[]);

/// The parts of `text`.
pub fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split('/').filter(|part| !part.is_empty())
}

/// A whole number from `least` to `most`, decimal or hexadecimal with `0x`.
///
/// # Errors
/// The bounds.
pub fn whole(value: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    };
    let bound = |n: u64| match n {
        n if n > 1 << 20 && n.is_power_of_two() => format!("2^{}", n.trailing_zeros()),
        n => n.to_string(),
    };
    let number = number.filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("not a whole number from {} to {}", bound(least), bound(most)))
}

/// A power of two from `least` to `most`.
///
/// # Errors
/// The bounds, or that it is none.
pub fn power_of_two(value: &str, least: u64, most: u64) -> Result<u64, String> {
    let n = whole(value, least, most)?;
    if n.is_power_of_two() { Ok(n) } else { Err("it is a power of two".into()) }
}

/// A number from `least` to `most`.
///
/// # Errors
/// The bounds.
pub fn number(value: &str, least: f64, most: f64) -> Result<f64, String> {
    // A comparison with NaN is false.
    let number = value.parse().ok().filter(|n| *n >= least && *n <= most);
    number.ok_or_else(|| format!("not a number from {least} to {most}"))
}

/// What the word `value` stands for.
///
/// # Errors
/// The words that there are.
pub fn one_of<T: Copy>(value: &str, words: &[(&str, T)]) -> Result<T, String> {
    let known = || words.iter().map(|w| w.0).collect::<Vec<_>>().join(", ");
    let found = words.iter().find(|w| w.0 == value).map(|w| w.1);
    found.ok_or_else(|| format!("there are: {}", known()))
}

/// The word that stands for `value`.
pub fn word_of<T: PartialEq>(value: &T, words: &[(&str, T)]) -> String {
    words.iter().find(|w| w.1 == *value).map_or_else(String::new, |w| w.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, PartialEq, Debug)]
    struct Config {
        size: u64,
        fast: bool,
    }

    const SPEEDS: [(&str, bool); 2] = [("slow", false), ("fast", true)];

    static TABLE: OptionTable<Config> = OptionTable {
        bare: Some("speed"),
        check: |c| if c.fast && c.size > 9 { Err("fast, and large".into()) } else { Ok(()) },
        ..OptionTable::new(&[
            OptionRow {
                name: "speed",
                values: "slow|fast",
                meaning: "how fast; slow unless given",
                set: |c, value| one_of(value, &SPEEDS).map(|fast| c.fast = fast),
                get: |c| word_of(&c.fast, &SPEEDS),
            },
            OptionRow {
                name: "size",
                values: "N",
                meaning: "how large; 0 unless given",
                set: |c, value| whole(value, 0, 1 << 30).map(|size| c.size = size),
                get: |c| c.size.to_string(),
            },
        ])
    };

    #[test]
    fn one_spelling_is_read_back_as_it_is_written() {
        for (text, spelled) in [
            ("", ""),
            ("size=0/speed=slow", ""),
            ("size=0x10", "size=16"),
            ("size=3/fast", "fast/size=3"),
            ("speed=fast/size=3", "fast/size=3"),
        ] {
            assert_eq!(TABLE.normalize(text).unwrap(), spelled);
            assert_eq!(TABLE.normalize(spelled).unwrap(), spelled);
        }
        assert_eq!(TABLE.keys()[1], ("size", "N", "how large; 0 unless given"));
        let (config, rest) = TABLE.take(["size=2", "other=3"]).unwrap();
        assert_eq!((config.size, rest), (2, vec!["other=3"]));
        assert_eq!(NO_OPTIONS.normalize("").unwrap(), "");
    }

    #[test]
    fn the_message_says_what_is_wrong_and_what_would_be_right() {
        for (text, says) in [
            ("size=x", "size=x: not a whole number from 0 to 2^30"),
            ("size=-1", "size=-1: not a whole number"),
            ("quick", "speed=quick: there are: slow, fast"),
            ("size=1/size=1", "size is given twice"),
            ("fast/speed=slow", "speed is given twice"),
            ("sizes=1", "there is no option `sizes`; there are: speed=slow|fast, size=N"),
            ("fast/size=10", "fast, and large"),
        ] {
            assert!(TABLE.normalize(text).unwrap_err().starts_with(says), "{text}");
        }
        assert!(NO_OPTIONS.normalize("fast").unwrap_err().contains("nothing to set"));
        for bad in ["NaN", "-1", "1e9", ""] {
            assert_eq!(number(bad, 0.5, 10.0).unwrap_err(), "not a number from 0.5 to 10");
        }
    }
}
