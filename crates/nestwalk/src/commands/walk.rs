//! `walk`: one translation, reference by reference.

use crate::args::WalkArgs;
use crate::commands::entries;
use crate::commands::step::entry_name;
use crate::commands::walk_cold::ByHand;
use crate::commands::walk_picture::{self, served};
use crate::formats::{self, Found};
use crate::screen::Screen;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_hw::Profile;
use nestwalk_hw::profile::WalkCacheProfile;
use nestwalk_lab::words;
use nestwalk_mm::{GuestConfig, ModelledGuest};
use nestwalk_report::figure::svg;
use nestwalk_report::{Align, Table};
use nestwalk_sim::compare::spec::{GuestSpec, MachineSpec};
use nestwalk_sim::compare::{Plan, machine};
use nestwalk_sim::hardware::Step;
use nestwalk_sim::{Dimension, SCHEMES};
use nestwalk_tables::Mode;
use nestwalk_types::{AccessKind, Batch, BatchBuilder, GuestBatch, Gva, VcpuId};
use serde_json::{Value, json};
use std::io::Write;

const GUEST_BYTES: u64 = 16 << 30;

/// `nestwalk walk`.
pub fn walk(args: &WalkArgs) -> Result<()> {
    let guest_mode = words::mode("--guest-paging", &args.guest_paging)?;
    let host_mode = words::host_mode("--host-paging", &args.host_paging)?;
    let address = address(args, guest_mode)?;
    if let Some(walk) = ByHand::asked(args, (guest_mode, host_mode))? {
        let profile = without_walk_caches(Profile::load(&args.profile).context("--profile")?);
        let steps = walk.steps(&profile, address)?;
        return show(args, &Cold { machine: &walk.name, mode: guest_mode, address, steps });
    }
    let default_pages = words::pages("--page-size", &args.page_size)?;
    let spec = MachineSpec::parse(&args.machine, default_pages)?;
    words::machine(&spec, guest_mode, host_mode)?;
    if spec.scheme.name == "ideal" {
        let walking: Vec<&str> =
            SCHEMES.iter().map(|s| s.name).filter(|name| *name != "ideal").collect();
        bail!("machine `{}`: ideal does not walk; others do: {}", spec.name, walking.join(", "));
    }
    let profile = Profile::load(&args.profile).context("--profile")?;
    let profile = if args.caches { profile } else { without_walk_caches(profile) };
    let steps = steps(&spec, profile, (guest_mode, host_mode), address)?;
    show(args, &Cold { machine: &spec.name, mode: guest_mode, address, steps })
}

fn show(args: &WalkArgs, walk: &Cold<'_>) -> Result<()> {
    if let Some(file) = &args.svg {
        let scene = walk_picture::picture(&walk.title(), walk.mode, walk.address, &walk.steps);
        formats::write_file("--svg", file, &svg(&scene))?;
    }
    let out = args.format.render(walk)?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// A processor on which nothing shortens a walk.
pub fn without_walk_caches(mut profile: Profile) -> Profile {
    profile.walk_cache = WalkCacheProfile::default();
    profile.nested_walk_cache = WalkCacheProfile::default();
    profile.entry_cache = None;
    profile.l2_tlb.iter_mut().for_each(|array| array.pdes = false);
    profile.nested_tlb = None;
    profile
}

/// The references of one walk of a machine, from cold.
///
/// # Errors
/// The machine cannot be set up, or has no guest of its own.
pub fn steps(
    spec: &MachineSpec,
    profile: Profile,
    (guest_mode, host_mode): (&'static Mode, &'static Mode),
    address: u64,
) -> Result<Vec<Step>> {
    let guest_bytes = if guest_mode.entry_bytes == 4 { 3 << 30 } else { GUEST_BYTES };
    let bytes = (guest_bytes, 2 * GUEST_BYTES);
    let plan = Plan { guest_mode, host_mode, ..Plan::new(Vec::new(), profile, bytes) };
    let mut machine = machine(&plan, spec)?;
    let GuestSpec::Modelled(policies) = spec.guest else {
        bail!("machine `{}`: there is no recorded guest here; name page sizes", spec.name);
    };
    let config = GuestConfig {
        policy: policies.pages,
        placement: policies.placement,
        ..GuestConfig::new(guest_mode, guest_bytes)
    };
    let mut builder = BatchBuilder::new();
    let (pc, gva) = (Gva::new(0), Gva::new(address));
    builder.access(VcpuId(0), pc, gva, 1, AccessKind::Load, 1);
    let (mut batch, mut events) = (Batch::default(), GuestBatch::default());
    builder.take_into(&mut batch);
    ModelledGuest::new(config)?.process(&batch, &mut events)?;
    machine.run(&events)?;
    Ok(machine.watch(&batch.runs[0])?)
}

/// The address that was given, or one like those of a program's mappings.
fn address(args: &WalkArgs, mode: &Mode) -> Result<u64> {
    let Some(text) = &args.address else {
        // As far up in a process of fewer bits.
        return Ok(match mode.address_bits() {
            32 => 0xb7a0_1234,
            _ => 0x7fff_f7a0_1234 & (words::process_bytes(mode) - 1),
        });
    };
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let address = u64::from_str_radix(digits, 16).ok();
    let address = address.filter(|_| !digits.starts_with('+')).ok_or_else(|| {
        anyhow!("--address {text}: write a 64-bit address in hexadecimal, as in 0x7ffff7a01234")
    })?;
    let last = words::process_bytes(mode) - 1;
    if address > last {
        bail!(
            "--address {text}: a process's addresses under {} paging end at {last:#x}",
            mode.name
        );
    }
    Ok(address)
}

/// What a reference is for.
pub fn purpose(step: &Step) -> String {
    match (step.dimension, step.on_behalf) {
        (Dimension::Nested, 0) => "where is the page".into(),
        (Dimension::Nested, level) => format!("where is the guest's level-{level} table"),
        (_, _) => "entry of the address".into(),
    }
}

/// One translation from cold.
pub struct Cold<'a> {
    /// The machine's name.
    pub machine: &'a str,
    /// Paging mode of the guest.
    pub mode: &'static Mode,
    /// What is translated.
    pub address: u64,
    /// References, in order.
    pub steps: Vec<Step>,
}

impl Cold<'_> {
    /// What it is.
    pub fn title(&self) -> String {
        let references = match self.steps.len() {
            1 => "1 reference".into(),
            n => format!("{n} references"),
        };
        format!("{} translates gVA {:#x} in {references}", self.machine, self.address)
    }

    /// The address cut into indexes: `L4 255, L3 511, ..., offset 0x234`.
    pub fn split(&self) -> String {
        let levels = entries::split(self.mode, self.address).into_iter();
        let levels = levels.map(|(level, index, _)| format!("L{level} {index}"));
        let offset = self.address & self.mode.span(1).mask();
        format!("{}, offset {offset:#x}", levels.collect::<Vec<_>>().join(", "))
    }
}

impl Found for Cold<'_> {
    fn json(&self) -> Result<Value> {
        let index = |(level, index, shift): (u8, u64, u32)| json!({ "level": level, "index": index, "lowest_bit": shift });
        let indexes = entries::split(self.mode, self.address).into_iter().map(index);
        let indexes: Vec<Value> = indexes.collect();
        Ok(json!({
            "machine": self.machine,
            "address": format!("{:#x}", self.address),
            "indexes": indexes,
            "steps": self.rows()?,
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let value = |s: &Step| {
            json!({
                "reference": entry_name(s),
                "dimension": s.dimension,
                "level": s.level,
                "on_behalf_of_guest_level": s.on_behalf,
                "host_physical_address": format!("{:#x}", s.at.value()),
                "entry": format!("{:#x}", s.entry),
                "flags": entries::flags(s.entry),
                "served": served(s),
            })
        };
        Ok(self.steps.iter().map(value).collect())
    }

    fn table(&self, _: Screen) -> String {
        let mut table = Table::new()
            .column("#", Align::Right)
            .column("entry", Align::Left)
            .column("read at hPA", Align::Right)
            .column("points to, flags", Align::Left)
            .column("served by", Align::Left)
            .column("why", Align::Left);
        for (i, step) in self.steps.iter().enumerate() {
            table.row(vec![
                (i + 1).to_string(),
                entry_name(step),
                format!("{:#x}", step.at.value()),
                entries::text(step.entry),
                served(step).into(),
                purpose(step),
            ]);
        }
        let flags =
            entries::FLAGS.iter().map(|(_, letters, meaning)| format!("{letters} {meaning}"));
        format!(
            "{}:\n\nindexes  {}\n\n{}\nflags: {}\n",
            self.title(),
            self.split(),
            table.render(),
            flags.collect::<Vec<_>>().join(", ")
        )
    }
}
