//! The agreement check: what the tables of the stream say, against the address that QEMU used.

use nestwalk_mm::{ObservedError, ObservedGuest};
use nestwalk_types::{Address, Control, Gpa, GuestInfo, Gva, VcpuId};

/// Disagreements that are kept for messages.
const KEPT: usize = 5;

/// How often the stream's tables and QEMU agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Translations compared.
    pub compared: u64,
    /// The stream's tables say another address.
    pub different: u64,
    /// The stream's tables have no mapping: QEMU used a TLB entry that outlived it. On one vCPU there
    /// is none; on several, one may use what another has just taken away.
    pub not_mapped: u64,
    /// The first disagreements, in words.
    pub examples: Vec<String>,
}

/// Follows the stream and compares.
pub struct Check {
    guest: ObservedGuest,
    /// What was found.
    pub agreement: Agreement,
}

impl Check {
    /// For a guest of which nothing is known yet.
    ///
    /// # Errors
    /// See [`ObservedGuest::new`].
    pub fn new(info: &GuestInfo) -> Result<Self, ObservedError> {
        Ok(Self { guest: ObservedGuest::new(info)?, agreement: Agreement::default() })
    }

    /// Takes note of a change.
    ///
    /// # Errors
    /// The control has no place in the stream of a recorded guest, in words.
    pub fn follow(&mut self, control: &Control) -> Result<(), String> {
        self.guest.follow(&[(0, control.clone())]).map_err(|e| e.to_string())
    }

    /// Compares one translation.
    pub fn compare(&mut self, vcpu: VcpuId, gva: Gva, used: Gpa) {
        let a = &mut self.agreement;
        a.compared += 1;
        let found = self.guest.look_up(vcpu, gva);
        let said = match found {
            Ok(leaf) => {
                let gpa = leaf.entry.frame::<Gpa>(leaf.size).offset_by(gva.offset_in(leaf.size));
                if gpa == used {
                    return;
                }
                a.different += 1;
                format!("{gpa:?}")
            }
            Err(error) => {
                a.not_mapped += 1;
                error.to_string()
            }
        };
        if a.examples.len() < KEPT {
            a.examples.push(format!(
                "vCPU {}: {gva:?} was at {used:?}, and the tables say {said}",
                vcpu.0
            ));
        }
    }
}
