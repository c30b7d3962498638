//! What an axis may be: an option of `compare`, or a key of a configuration.

use super::file::whole;
use crate::args::Args;
use anyhow::{Context, Result, anyhow, bail};
use clap::{ArgAction, CommandFactory};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Groups of options that say where results go or how they are shown, which is no part of a point, and
/// those of several VMs.
const NOT_SWEPT: [&str; 3] = ["Output", "Tables", "Several VMs on one host"];
/// The source and a command, which are no options.
const WORDS: [&str; 3] = ["source", "sources", "command"];

/// What an option of `compare` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// A value.
    One,
    /// A value each time that it is given.
    Many,
}

/// Options of `compare` that a point may have, by name with `_` for `-`.
pub fn options() -> BTreeMap<String, Takes> {
    let args = Args::command();
    let compare = args.find_subcommand("compare").into_iter().flat_map(|c| c.get_arguments());
    let swept = compare.filter(|option| {
        !NOT_SWEPT.contains(&option.get_help_heading().unwrap_or_default())
            && !matches!(option.get_long(), None | Some("walk-map" | "help" | "version"))
    });
    let options = swept.filter_map(|option| {
        let takes = match option.get_action() {
            ArgAction::SetTrue => Takes::Nothing,
            ArgAction::Append => Takes::Many,
            _ => Takes::One,
        };
        Some((plain(option.get_long()?), takes))
    });
    options.chain(WORDS.map(|word| (word.to_owned(), Takes::Many))).collect()
}

/// A name as options are looked up.
pub fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The words of a command line that options mean.
///
/// # Errors
/// There is no such option, or it takes no such value.
pub fn words(table: &Table) -> Result<Vec<String>> {
    let known = options();
    let (mut before, mut after) = (vec!["nestwalk".to_owned(), "compare".to_owned()], Vec::new());
    for (key, value) in table {
        let name = plain(key);
        let takes = known.get(&name).ok_or_else(|| unknown("option", key, &known, &[]))?;
        let option = format!("--{}", name.replace('_', "-"));
        let wrong = |what: &str| anyhow!("{key} = {value}: {what} is expected");
        match (takes, value) {
            (Takes::Nothing, Value::Boolean(true)) => before.push(option),
            (Takes::Nothing, Value::Boolean(false)) => {}
            (Takes::Nothing, _) => return Err(wrong("true or false")),
            (Takes::Many, value) => {
                let all = match value {
                    Value::Array(all) => all.iter().map(text).collect::<Option<Vec<_>>>(),
                    one => text(one).map(|one| vec![one]),
                };
                let all = all.ok_or_else(|| wrong("a word, or a list of words"))?;
                match name.as_str() {
                    "command" => after.extend(all),
                    // A word that begins with a dash is no option here.
                    _ if WORDS.contains(&name.as_str()) => before.extend(all),
                    _ => before.extend(all.iter().map(|one| format!("{option}={one}"))),
                }
            }
            (Takes::One, Value::Array(all)) if name == "machines" => {
                let all = all.iter().map(text).collect::<Option<Vec<_>>>();
                let all = all.ok_or_else(|| wrong("a list of names"))?.join(",");
                before.push(format!("{option}={all}"));
            }
            (Takes::One, value) => {
                let value = text(value).ok_or_else(|| wrong("a number or a text"))?;
                before.push(format!("{option}={value}"));
            }
        }
    }
    if !after.is_empty() {
        before.push("--".into());
        before.extend(after);
    }
    Ok(before)
}

/// A number or text as it is typed.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(n) => Some(n.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}

/// Sets the key of a configuration at `path`, `profile.l2_tlb.entries` for example. In a list it is the
/// first one's, unless a number says which: `profile.l2_tlb.1.entries`.
///
/// # Errors
/// Something else is expected there.
pub fn set(config: &mut Value, path: &str, new: &Value) -> Result<()> {
    let wrong = |what: &str| anyhow!("{path} = {new}: {what} is expected");
    let at = find(config, path).with_context(|| format!("{path}: not in this configuration"))?;
    let sourced = at.as_table().is_some_and(|table| {
        table.len() == 2 && table.contains_key("value") && table.contains_key("source")
    });
    if sourced && !new.is_table() {
        // Where the old number came from is not where this one does.
        at["source"] = Value::String("set by a sweep".into());
        return set(at, "value", new).map_err(|_| wrong("a number"));
    }
    *at = match (&*at, new) {
        (Value::Integer(_), Value::Integer(_) | Value::String(_)) => {
            let number = whole(new).with_context(|| path.to_owned())?;
            Value::Integer(i64::try_from(number).map_err(|_| wrong("a smaller number"))?)
        }
        (Value::Integer(_), _) => return Err(wrong("a whole number")),
        (Value::Float(_), Value::Integer(n)) => Value::Float(*n as f64),
        (Value::Float(_), Value::Float(_))
        | (Value::Boolean(_), Value::Boolean(_))
        | (Value::String(_), Value::String(_))
        | (Value::Array(_), Value::Array(_))
        | (Value::Table(_), Value::Table(_)) => new.clone(),
        (Value::Array(_), one @ Value::String(_)) => Value::Array(vec![one.clone()]),
        (is, _) => return Err(wrong(&format!("a {}", is.type_str()))),
    };
    Ok(())
}

/// The value at a path.
pub fn find<'a>(mut at: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.peek() {
        at = match at {
            Value::Table(table) => {
                let inside = table.get_mut(*part)?;
                parts.next();
                inside
            }
            Value::Array(list) => match part.parse::<usize>() {
                Ok(number) => {
                    parts.next();
                    list.get_mut(number)?
                }
                Err(_) => list.first_mut()?,
            },
            _ => return None,
        };
    }
    Some(at)
}

/// Paths of all keys of a configuration, for those who mistyped one.
pub fn paths(config: &Value, at: &str, all: &mut Vec<String>) {
    match config {
        Value::Table(table) if !table.contains_key("value") || !table.contains_key("source") => {
            for (key, value) in table.iter().filter(|(key, _)| *key != "source") {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                paths(value, &path, all);
            }
        }
        Value::Array(list) if list.iter().all(Value::is_table) => {
            for (number, value) in list.iter().enumerate() {
                let path = if number == 0 { at.to_owned() } else { format!("{at}.{number}") };
                paths(value, &path, all);
            }
        }
        _ => all.push(at.to_owned()),
    }
}

/// That there is nothing of that name, with what is nearest.
pub fn unknown(
    what: &str,
    name: &str,
    options: &BTreeMap<String, Takes>,
    keys: &[String],
) -> anyhow::Error {
    let plain = plain(name);
    let mut all: Vec<(usize, &String)> = options
        .keys()
        .chain(keys)
        .map(|key| {
            // The last part alone may be what was meant: entries for profile.l2_tlb.entries.
            let last = key.rsplit('.').next().unwrap_or(key);
            let distance = strsim::levenshtein(&plain, key);
            (distance.min(strsim::levenshtein(&plain, last) + 1), key)
        })
        .collect();
    all.sort();
    all.dedup();
    let near = all.iter().filter(|(distance, _)| *distance <= 2.max(plain.len() / 3));
    let near: Vec<String> = near.take(4).map(|(_, key)| format!("`{key}`")).collect();
    let mut message = format!("{what} `{name}`: there is none of that name");
    if !near.is_empty() {
        message += &format!("; nearest: {}", near.join(", "));
    }
    let names: Vec<&str> = options.keys().map(String::as_str).collect();
    message += &format!("; options of `compare` are {}", names.join(", "));
    if !keys.is_empty() {
        message += "; all else is a key of config.toml as `compare --output` writes it, or a word in \
                    braces in a value of [compare]";
    }
    anyhow!(message)
}

/// Texts of a value with words in braces replaced; every word that was is told to `found`.
///
/// # Errors
/// A value that is no number or text is to stand in a text.
pub fn fill(value: &mut Value, names: &[(String, Value)], found: &mut Vec<String>) -> Result<()> {
    match value {
        Value::String(written) => {
            for (name, value) in names {
                let word = format!("{{{name}}}");
                if written.contains(&word) {
                    let Some(text) = text(value) else {
                        bail!("{word}: {value} can stand in no text");
                    };
                    *written = written.replace(&word, &text);
                    found.push(name.clone());
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                fill(value, names, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        let text = "n = 1\nlist = ['a']\n[[t]]\nentries = 4\n[[t]]\nentries = 8\n[core]\n\
                    cpi = { value = 0.25, source = 'a manual' }\n";
        Value::Table(toml::from_str(text).unwrap())
    }

    #[test]
    fn keys_are_set_where_they_stand() {
        let mut config = config();
        for (path, value) in [
            ("n", Value::String("16KiB".into())),
            ("t.entries", Value::Integer(5)),
            ("t.1.entries", Value::Integer(9)),
            ("core.cpi", Value::Integer(2)),
            ("list", Value::String("b".into())),
        ] {
            set(&mut config, path, &value).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        assert_eq!(config["n"], Value::Integer(16384));
        assert_eq!(
            (&config["t"][0]["entries"], &config["t"][1]["entries"]),
            (&5.into(), &9.into())
        );
        assert_eq!(config["core"]["cpi"]["value"], Value::Float(2.0));
        assert_ne!(config["core"]["cpi"]["source"], Value::String("a manual".into()));
        assert_eq!(config["list"], Value::Array(vec!["b".into()]));
        for (path, value) in [
            ("n", Value::Float(0.5)),
            ("n", Value::String("many".into())),
            ("n.m", Value::Integer(1)),
            ("t.2.entries", Value::Integer(1)),
            ("core.cpi", Value::Boolean(true)),
            ("core", Value::Integer(1)),
        ] {
            assert!(set(&mut config, path, &value).is_err(), "{path} = {value}");
        }
    }

    #[test]
    fn every_path_can_be_found() {
        let mut config = config();
        let mut all = Vec::new();
        paths(&config, "", &mut all);
        assert_eq!(all, ["core.cpi", "list", "n", "t.entries", "t.1.entries"]);
        assert!(all.iter().all(|path| find(&mut config, path).is_some()));
    }

    #[test]
    fn options_are_words_of_a_command_line() {
        let table: Table = toml::from_str(
            "source = ['gups', 'redis']\nmachines = ['a', 'b']\npage-size = 'thp'\nseed = 3\n\
             verify = true\napproximate = false\nguest = true\ncommand = ['ls', '-l']\n",
        )
        .unwrap();
        let mut words = words(&table).unwrap();
        words[2..].sort();
        let expected =
            ["--", "--guest", "--machines=a,b", "--page-size=thp", "--seed=3", "--verify", "-l"];
        assert_eq!(words[2..9], expected.map(String::from));
        assert_eq!(words[9..], ["gups", "ls", "redis"].map(String::from));
        let error = self::words(&toml::from_str("fotprint = 1\n").unwrap()).unwrap_err();
        assert!(error.to_string().contains("nearest: `footprint`"), "{error}");
        assert!(!options().contains_key("format") && !options().contains_key("wide"));
    }
}
