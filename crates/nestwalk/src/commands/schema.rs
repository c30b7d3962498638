//! `schema`: the JSON schema of results, from the types that they are written from.

use crate::args::SchemaArgs;
use anyhow::Result;

/// `nestwalk schema`.
///
/// # Errors
/// It is not in this build, or standard output cannot be written.
#[cfg(not(feature = "schema"))]
pub fn schema(_: &SchemaArgs) -> Result<()> {
    anyhow::bail!(
        "schema: not in this build, which is lighter without; cargo build --release --features schema \
         makes one that has it"
    )
}

#[cfg(feature = "schema")]
pub use with::schema;

#[cfg(feature = "schema")]
mod with {
    use super::{Result, SchemaArgs};
    use crate::args::SchemaOf;
    use crate::fields;
    use crate::formats::{RESULTS_FORMAT, SWEEP_FORMAT};
    use nestwalk_sim::report::schema::Object;
    use nestwalk_sim::{Field, MachineResult, PlacementResult};
    use schemars::generate::SchemaSettings;
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use serde_json::Value;
    use std::borrow::Cow;
    use std::collections::BTreeMap;
    use std::io::Write;

    /// Objects by names that nobody can know beforehand.
    type Named<T> = BTreeMap<String, T>;

    pub fn schema(args: &SchemaArgs) -> Result<()> {
        let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
        let (title, mut schema) = match args.of {
            SchemaOf::Results => {
                ("Results of nestwalk compare", Results::json_schema(&mut generator))
            }
            SchemaOf::Sweep => ("Results of nestwalk sweep", Sweep::json_schema(&mut generator)),
        };
        schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        schema.insert("title".into(), title.into());
        let parts = generator.take_definitions(true);
        schema.insert("$defs".into(), Value::Object(parts));
        let text = serde_json::to_string_pretty(&schema)? + "\n";
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    /// The results of a sweep.
    static SWEEP: &[Field] = &[
        ("format_version", "", "grows if a field goes or means something else: docs/formats.md"),
        ("version", "", "the nestwalk that wrote it"),
        ("axes", "", "names of the axes, in order"),
        ("complete", "", "all points are there"),
        ("points", "", "those that are, in order"),
        ("missing", "", "values of those that are not"),
    ];

    /// A point of a sweep.
    static SWEEP_POINT: &[Field] = &[
        ("axes", "", "its values, by names of axes"),
        ("key", "", "the name of its file in `points`"),
        ("seed", "", "its seed"),
        (
            "input_hash",
            "",
            "hash of its configuration but the seed, and of the contents of its files",
        ),
        ("commit", "", "the commit that computed it, or release"),
        ("results", "", "as `compare --output` writes them"),
    ];

    /// A type whose schema is made of the rows that document it.
    macro_rules! of_rows {
        ($($name:ident |$g:ident, $all:ident| $body:block)*) => {
            $(struct $name;
            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($name).into()
                }
                fn json_schema($g: &mut SchemaGenerator) -> Schema {
                    let mut $all = Rows::default();
                    $body
                    $all.0.schema()
                }
            })*
        };
    }

    #[derive(Default)]
    struct Rows(Object);

    impl Rows {
        /// A field of these rows. That there is a row is what a test sees, and no reason to panic.
        fn field<T: JsonSchema>(&mut self, g: &mut SchemaGenerator, rows: &[Field], name: &str) {
            if let Some(row) = rows.iter().find(|row| row.0 == name) {
                self.0.always::<T>(g, row);
            }
        }

        /// All other fields of these rows.
        fn others<T: JsonSchema>(&mut self, g: &mut SchemaGenerator, rows: &[Field], but: &[&str]) {
            for row in rows.iter().filter(|row| !but.contains(&row.0)) {
                self.0.always::<T>(g, row);
            }
        }
    }

    /// The number that says which format it is.
    struct FormatVersion<const N: u64>;

    impl<const N: u64> JsonSchema for FormatVersion<N> {
        fn schema_name() -> Cow<'static, str> {
            "FormatVersion".into()
        }
        fn inline_schema() -> bool {
            true
        }
        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "const": N })
        }
    }

    of_rows! {
        Results |g, all| {
            let rows = fields::RESULTS;
            all.field::<FormatVersion<RESULTS_FORMAT>>(g, rows, "format_version");
            for text in ["version", "source", "description", "profile"] {
                all.field::<String>(g, rows, text);
            }
            all.field::<Vec<String>>(g, rows, "approximations");
            all.field::<bool>(g, rows, "complete");
            all.field::<Option<String>>(g, rows, "error");
            all.field::<Guests>(g, rows, "guests");
            all.field::<Vec<MachineResult>>(g, rows, "machines");
            all.field::<Option<Verdict>>(g, rows, "verdict");
            for row in rows.iter().filter(|row| row.0 == "repeats") {
                all.0.sometimes::<Repeats>(g, row);
            }
            for row in rows.iter().filter(|row| row.0 == "sampling") {
                all.0.sometimes::<Sampling>(g, row);
            }
        }
        Verdict |g, all| {
            let rows = fields::VERDICT;
            all.field::<Vec<String>>(g, rows, "sentences");
            for flag in ["same_work", "populated"] {
                all.field::<bool>(g, rows, flag);
            }
            all.field::<String>(g, rows, "baseline");
            all.field::<String>(g, rows, "fastest");
            all.field::<Option<String>>(g, rows, "next");
            all.field::<Option<f64>>(g, rows, "percent_less");
            all.field::<Named<f64>>(g, rows, "run_times");
            all.field::<Option<Difference>>(g, rows, "difference");
            all.field::<Named<String>>(g, rows, "fastest_by_pages");
        }
        Difference |g, all| {
            let texts = ["slower", "faster"];
            for text in texts {
                all.field::<String>(g, fields::DIFFERENCE, text);
            }
            all.others::<f64>(g, fields::DIFFERENCE, &texts);
        }
        Repeats |g, all| {
            all.field::<Vec<u64>>(g, fields::REPEATS, "seeds");
            all.field::<Vec<Repeated>>(g, fields::REPEATS, "machines");
        }
        Sampling |g, all| {
            all.others::<u64>(g, fields::SAMPLING, &["half_widths"]);
            all.field::<Named<Named<f64>>>(g, fields::SAMPLING, "half_widths");
        }
        Repeated |g, all| {
            all.field::<String>(g, fields::REPEATED, "name");
            all.field::<Spread>(g, fields::REPEATED, "run_time");
            all.field::<Named<Spread>>(g, fields::REPEATED, "fields");
        }
        Spread |g, all| { all.others::<f64>(g, fields::SPREAD, &[]); }
        ModelledGuest |g, all| {
            all.others::<f64>(g, fields::GUEST, &["placement"]);
            all.field::<PlacementResult>(g, fields::GUEST, "placement");
            for row in fields::REMAPPED {
                all.0.sometimes::<u64>(g, row);
            }
        }
        ObservedGuest |g, all| {
            let others = ["table_writes", "dropped", "dropped_examples"];
            all.others::<u64>(g, fields::OBSERVED, &others);
            all.field::<Named<TableWrites>>(g, fields::OBSERVED, "table_writes");
            all.field::<Named<Dropped>>(g, fields::OBSERVED, "dropped");
            all.field::<Vec<String>>(g, fields::OBSERVED, "dropped_examples");
        }
        TableWrites |g, all| { all.others::<u64>(g, fields::TABLE_WRITES, &[]); }
        Dropped |g, all| { all.others::<u64>(g, fields::DROPPED, &[]); }
        Sweep |g, all| {
            let rows = SWEEP;
            all.field::<FormatVersion<SWEEP_FORMAT>>(g, rows, "format_version");
            all.field::<String>(g, rows, "version");
            all.field::<Vec<String>>(g, rows, "axes");
            all.field::<bool>(g, rows, "complete");
            all.field::<Vec<SweepPoint>>(g, rows, "points");
            all.field::<Vec<Named<Value>>>(g, rows, "missing");
        }
        SweepPoint |g, all| {
            let rows = SWEEP_POINT;
            all.field::<Named<Value>>(g, rows, "axes");
            for text in ["key", "input_hash", "commit"] {
                all.field::<String>(g, rows, text);
            }
            all.field::<u64>(g, rows, "seed");
            all.field::<Results>(g, rows, "results");
        }
    }

    /// The observed guest, and modelled ones by their policies.
    struct Guests;

    impl JsonSchema for Guests {
        fn schema_name() -> Cow<'static, str> {
            "Guests".into()
        }
        fn json_schema(g: &mut SchemaGenerator) -> Schema {
            let (observed, modelled) =
                (g.subschema_for::<ObservedGuest>(), g.subschema_for::<ModelledGuest>());
            json_schema!({
                "type": "object",
                "properties": { "observed": observed },
                "additionalProperties": modelled,
            })
        }
    }
}
