//! What a machine is made from.

use crate::scheme::MachineError;
use crate::scheme::options::OptionTable;
use crate::scheme::placing::Placing;
use crate::scheme::vmm_options::{VmmKind, VmmOptions, VmmRules};
use nestwalk_hw::Profile;
use nestwalk_hw::cache::NodeLayout;
use nestwalk_mm::HostMemory;
use nestwalk_tables::Mode;

/// What a machine is made from.
pub struct MachineConfig {
    /// Its name in results.
    pub name: String,
    /// Options of its scheme, as [`crate::scheme::options::SchemeOptions::normalize`] spells them.
    pub variant: String,
    /// What its VMM may do differently.
    pub vmm: VmmOptions,
    /// Its hardware and costs.
    pub profile: Profile,
    /// Paging mode of the guest.
    pub guest_mode: &'static Mode,
    /// Paging mode of nested tables.
    pub nested_mode: &'static Mode,
    /// vCPUs, each on a core of its own.
    pub vcpus: usize,
    /// Bytes of guest memory.
    pub guest_bytes: u64,
    /// Memory behind the guest, for virtualized schemes.
    pub host: Option<HostMemory>,
    /// The referee watches.
    pub verify: bool,
}

impl MachineConfig {
    /// The options of the machine's scheme.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn options<C: Default>(&self, table: &OptionTable<C>) -> Result<C, MachineError> {
        let wrong = |reason| MachineError::Variant { machine: self.name.clone(), reason };
        table.parse(&self.variant).map_err(wrong)
    }

    /// The machine's nodes, and what comes to lie on which, if there are several.
    ///
    /// # Errors
    /// The profile has no latency of remote memory.
    pub fn nodes(&self) -> Result<Option<(NodeLayout, Placing)>, MachineError> {
        let wrong = |reason| MachineError::Variant { machine: self.name.clone(), reason };
        let bytes = self.host.as_ref().map_or(self.guest_bytes, |h| h.physical().bytes());
        let layout = self.vmm.nodes.layout(&self.profile, self.vcpus, bytes).map_err(wrong)?;
        Ok(layout.map(|layout| (layout, Placing::new(self.vmm.nodes))))
    }

    /// What the VMM's options come to on this processor.
    ///
    /// # Errors
    /// The processor has no such choice.
    pub fn rules(&self, kind: VmmKind) -> Result<VmmRules, MachineError> {
        let wrong = |reason| MachineError::Variant { machine: self.name.clone(), reason };
        self.vmm.rules(kind, &self.profile).map_err(wrong)
    }
}
