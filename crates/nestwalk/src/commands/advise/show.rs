//! How advice is told.

use super::judge::{Advice, Choice, Range};
use crate::formats::Found;
use crate::screen::Screen;
use crate::show::headings::ADVICE;
use anyhow::Result;
use nestwalk_host::Missing;
use nestwalk_lab::VERSION;
use nestwalk_report::{Align, Table, paragraph};
use serde_json::{Map, Value, json};

/// All that is told.
#[derive(Default)]
pub struct Report {
    /// What the advice is on.
    pub target: String,
    pub profile: String,
    /// What was seen, in lines with a label.
    pub facts: Vec<(&'static str, String)>,
    /// The same for programs, of a process.
    pub seen: Map<String, Value>,
    /// What each run was.
    pub runs: Vec<String>,
    /// None if nothing ran.
    pub advice: Option<Advice>,
    pub assumptions: Vec<String>,
    /// What could not be seen.
    pub missing: Vec<Missing>,
    /// What would narrow the answer.
    pub narrower: Vec<String>,
    /// TLB misses per 1000 instructions, if the processor counted them.
    pub counted: Option<f64>,
    /// Why it is not whole.
    pub cut: Option<String>,
}

/// Lines with one label, each a paragraph.
fn lines(label: &str, texts: &[String], columns: usize) -> String {
    let one = |(i, text): (usize, &String)| {
        let label = if i == 0 { format!("{label:<9}") } else { " ".repeat(9) };
        paragraph(&label, text, columns)
    };
    texts.iter().enumerate().map(one).collect()
}

fn table(choices: &[Choice]) -> Table {
    let mut table = Table::new();
    for (i, heading) in ADVICE.iter().enumerate() {
        table = table.column(heading.title, if i == 0 { Align::Left } else { Align::Right });
    }
    for choice in choices {
        let range = |range: Option<Range>, decimals| range.map_or("-".into(), |r| r.text(decimals));
        table.row(vec![
            choice.machine.clone(),
            choice.gain.text(1),
            range(choice.walks, 2),
            choice.translation.text(1),
        ]);
    }
    table
}

impl Found for Report {
    fn json(&self) -> Result<Value> {
        let missing = |m: &Missing| json!({ "what": m.what, "why": m.why, "remedy": m.remedy });
        Ok(json!({
            "version": VERSION,
            "target": self.target,
            "profile": self.profile,
            "complete": self.cut.is_none(),
            "cut": self.cut,
            "seen": if self.seen.is_empty() { Value::Null } else { json!(self.seen) },
            "runs": self.runs,
            "advice": self.advice.as_ref().map(Advice::json),
            "choices": self.rows()?,
            "assumptions": self.assumptions,
            "missing": self.missing.iter().map(missing).collect::<Vec<_>>(),
            "narrower": self.narrower,
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let choices = self.advice.iter().flat_map(|a| &a.choices);
        Ok(choices.map(Choice::json).collect())
    }

    fn table(&self, screen: Screen) -> String {
        let columns = screen.columns();
        let mut out = lines("advises", std::slice::from_ref(&self.target), columns);
        if !self.profile.is_empty() {
            out += &lines("profile", std::slice::from_ref(&self.profile), columns);
        }
        for (label, text) in &self.facts {
            out += &lines(label, std::slice::from_ref(text), columns);
        }
        if !self.runs.is_empty() {
            out += &lines("ranges", &[format!("over {}", self.runs.join(", "))], columns);
        }
        if let Some(advice) = &self.advice {
            out += &format!(
                "\n{}",
                screen.table(&table(&advice.choices).render_within(columns), None)
            );
            out += &format!("\n{}", lines("advice", &advice.sentences(), columns));
        }
        let missing: Vec<String> = self.missing.iter().map(ToString::to_string).collect();
        for (label, texts) in
            [("assumes", &self.assumptions), ("not seen", &missing), ("narrower", &self.narrower)]
        {
            if !texts.is_empty() {
                out += &format!("\n{}", lines(label, texts, columns));
            }
        }
        out
    }
}
