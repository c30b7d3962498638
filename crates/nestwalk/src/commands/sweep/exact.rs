//! JSON whose numbers are read exactly. `serde_json` may miss a number with a fraction by its last bit,
//! unless it is built to be exact, and slower, everywhere.

use anyhow::{Context, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};
use std::fmt;

/// The value of a text.
///
/// # Errors
/// It is no JSON.
pub fn parse(text: &str) -> Result<Value> {
    value(serde_json::from_str(text)?)
}

fn value(raw: &RawValue) -> Result<Value> {
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let Members(all) = serde_json::from_str(text)?;
            let member = |(key, raw): (String, &RawValue)| Ok((key, value(raw)?));
            Value::Object(all.into_iter().map(member).collect::<Result<Map<_, _>>>()?)
        }
        Some(b'[') => {
            let all: Vec<&RawValue> = serde_json::from_str(text)?;
            Value::Array(all.into_iter().map(value).collect::<Result<_>>()?)
        }
        Some(b'-' | b'0'..=b'9') if text.contains(['.', 'e', 'E']) => {
            let number = Number::from_f64(text.parse()?);
            Value::Number(number.with_context(|| format!("{text}: too large"))?)
        }
        _ => serde_json::from_str(text)?,
    })
}

/// Members of an object, in order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Members(all))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever bits a number has, it is read as it was written.
    #[test]
    fn numbers_are_those_that_were_written() {
        let mut bits = 1_u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let number = f64::from_bits(bits);
            if number.is_finite() {
                let text = serde_json::to_string(&number).unwrap();
                assert_eq!(parse(&text).unwrap().as_f64().unwrap().to_bits(), bits, "{text}");
            }
        }
    }

    #[test]
    fn all_else_is_as_it_was() {
        let text =
            r#"{"b": [1, -2, 18446744073709551615, null, true], "a": {"x": "1.5e3", "c": {}}}"#;
        let exact = parse(text).unwrap();
        assert_eq!(exact, serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(exact.as_object().unwrap().keys().collect::<Vec<_>>(), ["b", "a"]);
        for wrong in ["", "{", "[1,]", "1e999", "{\"a\": nan}"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
