//! Settings by name and text, for whoever has both from elsewhere: another language, a file.

use crate::settings::{PageTablesFile, Settings};
use crate::words;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_report::{parse_bytes, parse_count};
use nestwalk_sim::DaemonTimes;

/// Names that [`Settings::set`] takes: those of the fields of [`Settings`] that are one value.
pub const NAMES: [&str; 29] = [
    "accesses",
    "approximate",
    "daemons",
    "footprint",
    "guest_bad",
    "guest_bad_at",
    "guest_fragmentation",
    "guest_memory",
    "guest_paging",
    "guest_swap",
    "host_fragmentation",
    "host_memory",
    "host_page_tables",
    "host_paging",
    "low_memory",
    "machines",
    "page_size",
    "page_tables",
    "pcids",
    "populate",
    "profile",
    "quantum",
    "sample",
    "seed",
    "trace_format",
    "vcpus",
    "verify",
    "warmup",
    "sources",
];

fn yes_or_no(key: &str, text: &str) -> Result<bool> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => bail!("{key} {text}: write yes or no"),
    }
}

fn number<N: std::str::FromStr>(key: &str, text: &str, what: &str) -> Result<N> {
    text.parse().map_err(|_| anyhow!("{key} {text}: {what} is needed"))
}

impl Settings {
    /// Sets what has this name to what the text says, as the option of that name on the command line
    /// takes it. `page_tables` may be `none`, and sources have spaces between them.
    ///
    /// # Errors
    /// There is nothing of that name, or the text is no value for it.
    pub fn set(&mut self, key: &str, text: &str) -> Result<()> {
        let size = || parse_bytes(text).with_context(|| key.to_owned());
        let times = || parse_count(text).with_context(|| key.to_owned());
        let whole = |what| number::<u64>(key, text, what);
        let flag = || yes_or_no(key, text);
        match key {
            "sources" => self.sources = text.split_whitespace().map(String::from).collect(),
            "machines" => self.machines = text.into(),
            "profile" => self.profile = text.into(),
            "page_size" => self.page_size = words::pages(key, text)?,
            "footprint" => self.footprint = Some(size()?),
            "accesses" => self.accesses = Some(times()?),
            "warmup" => self.warmup = times()?,
            "populate" => self.populate = if text == "auto" { None } else { Some(flag()?) },
            "sample" => {
                crate::sampling::parse(key, text, self.seed)?;
                self.sample = text.into();
            }
            "seed" => self.seed = whole("a whole number from 0 on")?,
            "verify" => self.verify = flag()?,
            "vcpus" => self.vcpus = Some(number(key, text, "a number from 1 to 255")?),
            "quantum" => self.quantum = Some(times()?),
            "guest_memory" => self.guest_memory = Some(size()?),
            "host_memory" => self.host_memory = Some(size()?),
            "low_memory" => self.low_memory = Some(size()?),
            "guest_swap" => self.guest_swap = Some(text.into()),
            "guest_paging" => self.guest_paging = Some(text.into()),
            "host_paging" => self.host_paging = text.into(),
            "guest_fragmentation" => self.guest_fragmentation = words::fragmentation(key, text)?,
            "host_fragmentation" => self.host_fragmentation = words::fragmentation(key, text)?,
            "guest_bad" => self.guest_bad = Some(whole("a number of frames")?),
            "guest_bad_at" => self.guest_bad_at = words::frames(key, text)?,
            "daemons" => {
                let times = DaemonTimes::parse(text).map_err(|e| anyhow!(e));
                self.daemons = times.with_context(|| key.to_owned())?;
            }
            "pcids" => self.pcids = flag()?,
            "approximate" => self.approximate = flag()?,
            "trace_format" => self.trace_format = text.into(),
            "page_tables" if text == "none" => self.page_tables = PageTablesFile::None,
            "page_tables" => self.page_tables = PageTablesFile::File(text.into()),
            "host_page_tables" => self.host_page_tables = Some(text.into()),
            _ => bail!("{key}: no such setting; there are: {}", NAMES.join(", ")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_set_and_every_other_told() {
        for name in NAMES {
            let wrong = Settings::default().set(name, "?").err().map(|e| format!("{e:#}"));
            assert!(
                wrong.is_none_or(|e| e.starts_with(name) && !e.contains("no such setting")),
                "{name}"
            );
        }
        let told = Settings::default().set("foot_print", "1").unwrap_err().to_string();
        assert!(told.starts_with("foot_print: no such setting; there are: accesses, "), "{told}");
    }

    #[test]
    fn texts_are_those_of_the_command_line() {
        let mut settings = Settings::default();
        for (name, text) in [
            ("footprint", "64MiB"),
            ("accesses", "2M"),
            ("populate", "no"),
            ("guest_bad_at", "0x10+17"),
            ("page_tables", "none"),
            ("page_size", "2m"),
            ("pcids", "false"),
        ] {
            settings.set(name, text).unwrap();
        }
        let found = (settings.footprint, settings.accesses, settings.populate, settings.pcids);
        assert_eq!(found, (Some(64 << 20), Some(2_000_000), Some(false), false));
        assert_eq!(
            (settings.guest_bad_at, settings.page_tables),
            (vec![16, 17], PageTablesFile::None)
        );
        for (name, text) in [("vcpus", "0.5"), ("populate", "maybe"), ("footprint", "lots")] {
            let told = format!("{:#}", Settings::default().set(name, text).unwrap_err());
            assert!(told.starts_with(name) && told.contains(text), "{told}");
        }
    }
}
