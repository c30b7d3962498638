//! Names of machines: `scheme[/variant][:guest[+host]][@placement[+placement]]`.
//!
//! `nested:4k+2m` is nested paging with 4 KiB guest pages and 2 MiB host pages. A missing host part is
//! the guest's; a missing guest part is the default of the run. Placement policies follow `@`.
//!
//! What may follow `/` is the scheme's own: `switching/static-thresholds/high=12/keep=nested`.
//!
//! `nested:observed+2m` has the guest of the recording as it was: its tables, and its kernel's
//! placement. So nothing but the host has policies, and a single placement is the host's.

use crate::scheme::options::SchemeOptions;
use crate::scheme::vmm_options::VmmOptions;
use crate::schemes::{Catalogue, Definition};
use nestwalk_mm::{PLACEMENTS, PagePolicy, PlacementKind};
use thiserror::Error;

/// Page-size policies by name.
pub static PAGES: &[&str] = &["4k", "thp", "khugepaged", "2m", "4m", "1g"];

/// One dimension's policies.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DimensionSpec {
    /// Page sizes.
    pub pages: PagePolicy,
    /// Which frames.
    pub placement: PlacementKind,
}

impl DimensionSpec {
    /// Page sizes, and placement if it is not the default: `4k`, `thp@ca`.
    pub fn name(self) -> String {
        let mut name = self.pages.name();
        if self.placement != PlacementKind::default() {
            name += &format!("@{}", self.placement.name());
        }
        name
    }
}

/// Whose page tables a machine's guest has.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum GuestSpec {
    /// Those of the recorded kernel.
    Observed,
    /// Those of a modelled kernel with these policies.
    Modelled(DimensionSpec),
}

impl GuestSpec {
    /// Word for the observed guest in names.
    pub const OBSERVED: &'static str = "observed";

    /// `observed`, or the policies' name.
    pub fn name(self) -> String {
        match self {
            Self::Observed => Self::OBSERVED.into(),
            Self::Modelled(policies) => policies.name(),
        }
    }
    /// Name of its page sizes.
    fn pages(self) -> String {
        match self {
            Self::Observed => Self::OBSERVED.into(),
            Self::Modelled(policies) => policies.pages.name(),
        }
    }
    /// Its placement, if that is modelled.
    const fn placement(self) -> Option<PlacementKind> {
        match self {
            Self::Observed => None,
            Self::Modelled(policies) => Some(policies.placement),
        }
    }
}

/// What stands for missing parts of a name.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Defaults {
    /// Page sizes of a dimension that does not name its own.
    pub pages: PagePolicy,
    /// The guest is the recorded one if none is named.
    pub observed: bool,
}

impl From<PagePolicy> for Defaults {
    fn from(pages: PagePolicy) -> Self {
        Self { pages, observed: false }
    }
}

/// One machine, as asked for.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The name, with nothing left to defaults.
    pub name: String,
    /// The scheme.
    pub scheme: &'static Definition,
    /// What kind of the scheme; empty if there is only one.
    pub variant: String,
    /// What its VMM may do differently.
    pub vmm: VmmOptions,
    /// The guest.
    pub guest: GuestSpec,
    /// Policies of the host; `None` if the scheme has none.
    pub host: Option<DimensionSpec>,
}

/// Why a name is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// No such scheme.
    #[error("machine `{name}`: no scheme `{scheme}`; there are: {known}")]
    Scheme {
        /// The machine's name.
        name: String,
        /// The part that is not known.
        scheme: String,
        /// What there is.
        known: String,
    },
    /// The scheme does not take what follows it.
    #[error("machine `{name}`: {reason}")]
    Variant {
        /// The machine's name.
        name: String,
        /// What is wrong, by the scheme.
        reason: String,
    },
    /// No such page size policy.
    #[error("machine `{name}`: no page sizes `{pages}`; there are: {known}")]
    Pages {
        /// The machine's name.
        name: String,
        /// The part that is not known.
        pages: String,
        /// What there is.
        known: String,
    },
    /// No such placement policy.
    #[error("machine `{name}`: no placement `{placement}`; there are: {known}")]
    Placement {
        /// The machine's name.
        name: String,
        /// The part that is not known.
        placement: String,
        /// What there is.
        known: String,
    },
    /// A host part for a scheme without a host.
    #[error("machine `{name}`: `{scheme}` is not virtualized, so it has no host part `+...`")]
    NoHost {
        /// The machine's name.
        name: String,
        /// The scheme.
        scheme: &'static str,
    },
    /// Two placements where only the host has one.
    #[error(
        "machine `{name}`: the recorded guest's kernel has placed its memory itself; \
         write one placement after `@`, the host's"
    )]
    ObservedPlacement {
        /// The machine's name.
        name: String,
    },
    /// A recorded guest where the guest must keep a primary region.
    #[error(
        "machine `{name}`: the kernel of a recorded guest keeps no primary region; name page sizes for \
         the guest, as in `{scheme}:4k`, or take `vmm-direct`, which needs nothing of the guest"
    )]
    NoPrimaryRegion {
        /// The machine's name.
        name: String,
        /// The scheme.
        scheme: &'static str,
    },
    /// A primary region in the host.
    #[error(
        "machine `{name}`: placement `primary` is a guest's; contiguous host memory belongs to \
         `vmm-direct` and `dual-direct`"
    )]
    PrimaryHost {
        /// The machine's name.
        name: String,
    },
    /// The same machine twice.
    #[error("machine `{name}` is asked for twice")]
    Twice {
        /// The machine's name.
        name: String,
    },
}

impl MachineSpec {
    /// The first-level TLBs have sets of their own: those of the scheme, or an option of it.
    #[must_use]
    pub fn has_own_l1_sets(&self) -> bool {
        self.scheme.facts.own_l1_sets || self.variant.split('/').any(|o| o.starts_with("tlb="))
    }

    /// Reads a name; `defaults` stand for missing parts.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn parse(name: &str, defaults: impl Into<Defaults>) -> Result<Self, SpecError> {
        Self::parse_in(&Catalogue::new(), name, defaults)
    }

    /// As [`MachineSpec::parse`], of a scheme of this catalogue.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn parse_in(
        catalogue: &Catalogue,
        name: &str,
        defaults: impl Into<Defaults>,
    ) -> Result<Self, SpecError> {
        let defaults = defaults.into();
        let (rest, placement) = name.split_once('@').map_or((name, None), |(r, p)| (r, Some(p)));
        let (scheme, pages) = rest.split_once(':').map_or((rest, None), |(s, p)| (s, Some(p)));
        let (scheme, variant) = scheme.split_once('/').unwrap_or((scheme, ""));
        let scheme = catalogue.by_name(scheme).ok_or_else(|| SpecError::Scheme {
            name: name.into(),
            scheme: scheme.into(),
            known: catalogue.schemes().map(|s| s.name).collect::<Vec<_>>().join(", "),
        })?;
        let wrong = |reason| SpecError::Variant { name: name.into(), reason };
        let of_vmm = scheme.vmm.options();
        let (vmm, own) = of_vmm.take(variant.split('/')).map_err(wrong)?;
        let own = own.join("/");
        let variant = scheme.options.normalize_beside(&own, &of_vmm.keys()).map_err(wrong)?;
        let (guest_pages, host_pages) = halves(pages);
        let (mut guest_placement, mut host_placement) = halves(placement);
        let observed = guest_pages
            .as_deref()
            .map_or(defaults.observed, |p| p.eq_ignore_ascii_case(GuestSpec::OBSERVED));
        if observed && host_placement.is_some() {
            return Err(SpecError::ObservedPlacement { name: name.into() });
        }
        if observed {
            host_placement = guest_placement.take();
        }
        if !scheme.virtualized && (host_pages.is_some() || host_placement.is_some()) {
            return Err(SpecError::NoHost { name: name.into(), scheme: scheme.name });
        }
        let guest = DimensionSpec {
            pages: match guest_pages {
                Some(p) if !observed => pages_by_name(name, &p)?,
                _ => defaults.pages,
            },
            placement: match guest_placement {
                Some(p) => placement_by_name(name, &p)?,
                None if scheme.facts.primary_region => PlacementKind::Primary,
                None => PlacementKind::default(),
            },
        };
        if observed && scheme.facts.primary_region {
            return Err(SpecError::NoPrimaryRegion { name: name.into(), scheme: scheme.name });
        }
        let host = DimensionSpec {
            pages: host_pages.map_or(Ok(guest.pages), |pages| pages_by_name(name, &pages))?,
            placement: match host_placement {
                Some(p) => placement_by_name(name, &p)?,
                // Primary regions are of guests: the host's half is the scheme's own.
                None if guest.placement.has_region() => PlacementKind::default(),
                None => guest.placement,
            },
        };
        if scheme.virtualized && host.placement.has_region() {
            return Err(SpecError::PrimaryHost { name: name.into() });
        }
        let host = scheme.virtualized.then_some(host);
        let guest = if observed { GuestSpec::Observed } else { GuestSpec::Modelled(guest) };
        let vmm_options = scheme.vmm.options().spell(&vmm);
        let kind: Vec<&str> =
            [variant.as_str(), &vmm_options].into_iter().filter(|p| !p.is_empty()).collect();
        let name = full_name(scheme, &kind.join("/"), guest, host);
        Ok(Self { name, scheme, variant, vmm, guest, host })
    }

    /// Reads a list of names and adds the controls that are missing: `native` and `ideal` for every
    /// guest that occurs.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn parse_list(names: &str, defaults: impl Into<Defaults>) -> Result<Vec<Self>, SpecError> {
        Self::parse_list_in(&Catalogue::new(), names, defaults)
    }

    /// As [`MachineSpec::parse_list`], of schemes of this catalogue.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn parse_list_in(
        catalogue: &Catalogue,
        names: &str,
        defaults: impl Into<Defaults>,
    ) -> Result<Vec<Self>, SpecError> {
        let defaults = defaults.into();
        let mut asked = Vec::new();
        for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            asked.push(Self::parse_in(catalogue, name, defaults)?);
        }
        for (i, spec) in asked.iter().enumerate() {
            if asked[..i].iter().any(|s| s.name == spec.name) {
                return Err(SpecError::Twice { name: spec.name.clone() });
            }
        }
        let mut guests: Vec<GuestSpec> = Vec::new();
        for spec in &asked {
            if !guests.contains(&spec.guest) {
                guests.push(spec.guest);
            }
        }
        let mut all = Vec::new();
        for control in ["ideal", "native"] {
            let Some(scheme) = catalogue.by_name(control) else { continue };
            for &guest in &guests {
                let name = full_name(scheme, "", guest, None);
                if !asked.iter().any(|s| s.name == name) {
                    let (variant, vmm) = (String::new(), VmmOptions::default());
                    all.push(Self { name, scheme, variant, vmm, guest, host: None });
                }
            }
        }
        all.append(&mut asked);
        Ok(all)
    }
}

/// What is said of guest and host; of one alone it is the guest's.
fn halves(text: Option<&str>) -> (Option<String>, Option<String>) {
    match text.map(|t| t.split_once('+').ok_or(t)) {
        None => (None, None),
        Some(Ok((guest, host))) => (Some(guest.to_owned()), Some(host.to_owned())),
        Some(Err(both)) => (Some(both.to_owned()), None),
    }
}

/// `kind`: what follows the scheme's name.
fn full_name(
    scheme: &Definition,
    kind: &str,
    guest: GuestSpec,
    host: Option<DimensionSpec>,
) -> String {
    let kind = if kind.is_empty() { String::new() } else { format!("/{kind}") };
    let mut name = format!("{}{kind}:{}", scheme.name, guest.pages());
    if let Some(host) = host {
        name += &format!("+{}", host.pages.name());
    }
    let placements = [guest.placement(), host.map(|h| h.placement)];
    let placements: Vec<PlacementKind> = placements.into_iter().flatten().collect();
    if placements.iter().any(|p| *p != PlacementKind::default()) {
        let names: Vec<&str> = placements.iter().map(|p| p.name()).collect();
        name += &format!("@{}", names.join("+"));
    }
    name
}

fn pages_by_name(machine: &str, pages: &str) -> Result<PagePolicy, SpecError> {
    PagePolicy::by_name(pages).ok_or_else(|| SpecError::Pages {
        name: machine.into(),
        pages: pages.into(),
        known: PAGES.join(", "),
    })
}

fn placement_by_name(machine: &str, placement: &str) -> Result<PlacementKind, SpecError> {
    PlacementKind::by_name(placement).ok_or_else(|| SpecError::Placement {
        name: machine.into(),
        placement: placement.into(),
        known: PLACEMENTS.iter().map(|p| p.0).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_policy_has_its_name() {
        for name in PAGES {
            assert_eq!(PagePolicy::by_name(name).unwrap().name(), *name);
        }
    }

    fn base() -> PagePolicy {
        PagePolicy::by_name("4k").unwrap()
    }

    #[test]
    fn names_are_completed_and_controls_added() {
        let names = |list: &str| -> Vec<String> {
            let specs = MachineSpec::parse_list(list, base()).unwrap();
            specs.into_iter().map(|s| s.name).collect()
        };
        assert_eq!(names("nested"), ["ideal:4k", "native:4k", "nested:4k+4k"]);
        assert_eq!(
            names("native,shadow:2m"),
            ["ideal:4k", "ideal:2m", "native:2m", "native:4k", "shadow:2m+2m"]
        );
        assert_eq!(names("nested:4k+2m,nested:4k+1g").len(), 4);
    }

    #[test]
    fn other_names_and_cases_mean_the_same() {
        for (name, full) in [
            ("EPT:4K+2M", "nested:4k+2m"),
            ("npt:THP", "nested:thp+thp"),
            ("tdp/lived=long:1G", "nested/lived=long:1g+1g"),
            ("Shadow:Observed", "shadow:observed+4k"),
        ] {
            assert_eq!(MachineSpec::parse(name, base()).unwrap().name, full);
        }
        let e = MachineSpec::parse_list("ept,nested", base()).unwrap_err().to_string();
        assert!(e.contains("twice"), "{e}");
    }

    #[test]
    fn the_observed_guest_is_the_default_of_recordings() {
        let defaults = Defaults { pages: base(), observed: true };
        let names = |list: &str| -> Vec<String> {
            let specs = MachineSpec::parse_list(list, defaults).unwrap();
            specs.into_iter().map(|s| s.name).collect()
        };
        assert_eq!(
            names("native,shadow,nested"),
            ["ideal:observed", "native:observed", "shadow:observed+4k", "nested:observed+4k"]
        );
        assert_eq!(
            names("nested:observed+2m,nested:thp+2m"),
            [
                "ideal:observed",
                "ideal:thp",
                "native:observed",
                "native:thp",
                "nested:observed+2m",
                "nested:thp+2m"
            ]
        );
        // Names are complete: read without defaults they are the same.
        for name in names("native,shadow,nested:observed+1g,nested:thp+2m") {
            assert_eq!(MachineSpec::parse(&name, base()).unwrap().name, name);
        }
        let e = MachineSpec::parse("nested@default+default", defaults).unwrap_err().to_string();
        assert!(e.contains("the host's"), "{e}");
        let e = MachineSpec::parse("native@default", defaults).unwrap_err().to_string();
        assert!(e.contains("no host part"), "{e}");
        assert_eq!(
            MachineSpec::parse("nested@default", defaults).unwrap().name,
            "nested:observed+4k"
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        let error = |name: &str| MachineSpec::parse(name, base()).unwrap_err().to_string();
        let e = error("nestde");
        assert!(e.contains("no scheme `nestde`") && e.contains("nested"), "{e}");
        let e = error("ideal/fast:8k");
        assert!(e.contains("only one kind") && e.contains("`/fast`"), "{e}");
        // What the VMM's options are is told beside the scheme's own.
        let e = error("shadow/fast=yes:4k");
        assert!(e.contains("no option `fast`") && e.contains("kvm=4.19"), "{e}");
        let e = error("nested/fast:4k");
        assert!(e.contains("`fast`") && e.contains("eptad=") && e.contains("ept="), "{e}");
        let e = error("nested:8k");
        assert!(e.contains("`8k`") && e.contains("4k") && e.contains("thp"), "{e}");
        let e = error("native:4k+2m");
        assert!(e.contains("not virtualized"), "{e}");
        let e = error("nested@where");
        assert!(e.contains("no placement `where`") && e.contains("default"), "{e}");
        let e = MachineSpec::parse_list("nested,nested:4k", base()).unwrap_err().to_string();
        assert!(e.contains("twice"), "{e}");
    }
}
