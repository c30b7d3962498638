//! Two lists of answers, and where they differ first.

use crate::{Answers, Events};

/// The first action after which the model did otherwise than the real KVM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Number of the action, from 0.
    pub action: usize,
    /// Number of the first event that differs.
    pub event: usize,
    /// What the real KVM did.
    pub real: Events,
    /// What the model did.
    pub model: Events,
}

/// Where they differ first; `None` if they agree in every event.
#[must_use]
pub fn first_difference(real: &Answers, model: &Answers) -> Option<Difference> {
    let none = Events::new();
    (0..real.len().max(model.len())).find_map(|action| {
        let r = real.get(action).unwrap_or(&none);
        let m = model.get(action).unwrap_or(&none);
        let event = (0..r.len().max(m.len())).find(|i| r.get(*i) != m.get(*i))?;
        Some(Difference { action, event, real: r.clone(), model: m.clone() })
    })
}
