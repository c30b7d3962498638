//! Nodes of the machine, as names of machines spell them: `nested/nodes=2/gpt=1/ept=1:4k+4k`.
//!
//! - *`nodes`*: sockets, each with a last-level cache and a part of the memory.
//! - *`pin`*: the node on whose cores the vCPUs run, or `spread`: neighbours together, as many on each.
//! - *`data`*, *`gpt`*, *`ept`*: on which node pages of data, guest tables and nested tables come to
//!   lie. `touch` is the node of the vCPU for which the kernel or VMM hands the page out, as Linux
//!   does.
//! - *`load`*: other programs keep this node's memory busy.
//! - *`migrate`*, *`copies`*: vMitosis moves tables to the node of what they point to, or keeps a copy
//!   of them on each node; *`scan`* is how often it looks for tables to move.

use super::options::{OptionRow, one_of, whole, word_of};
use super::vmm_options::VmmOptions;
use nestwalk_hw::Profile;
use nestwalk_hw::cache::NodeLayout;

type Row = OptionRow<VmmOptions>;

/// Nodes at most.
pub const MOST: u8 = 8;

/// On which node something comes to lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Put {
    /// That of the vCPU for which it is handed out.
    #[default]
    Touch,
    /// One after the other.
    Interleave,
    /// This one.
    On(u8),
}

/// Where vCPUs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pin {
    /// All on one node.
    On(u8),
    /// On all nodes: the first ones on the first node, and so on.
    Spread,
}

impl Default for Pin {
    fn default() -> Self {
        Self::On(0)
    }
}

/// Tables of which dimensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Which {
    /// None.
    #[default]
    None,
    /// The guest's.
    Gpt,
    /// Nested ones.
    Ept,
    /// Both.
    Both,
}

impl Which {
    /// The guest's tables are among them.
    pub const fn gpt(self) -> bool {
        matches!(self, Self::Gpt | Self::Both)
    }
    /// Nested tables are among them.
    pub const fn ept(self) -> bool {
        matches!(self, Self::Ept | Self::Both)
    }
}

const WHICH: [(&str, Which); 4] =
    [("none", Which::None), ("gpt", Which::Gpt), ("ept", Which::Ept), ("both", Which::Both)];

/// Instructions from one scan to the next, unless given.
pub const SCAN: u64 = 1_000_000;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeOptions {
    /// Nodes; `None` for one.
    pub nodes: Option<u8>,
    /// Where vCPUs run.
    pub pin: Pin,
    /// Where data comes to lie.
    pub data: Put,
    /// Where the guest's tables come to lie.
    pub gpt: Put,
    /// Where nested tables come to lie.
    pub ept: Put,
    /// The node whose memory is busy.
    pub load: Option<u8>,
    /// Tables that move to the node of what they point to.
    pub migrate: Which,
    /// Tables of which there is a copy on each node.
    pub copies: Which,
    /// Instructions from one scan for tables to move to the next, [`SCAN`] unless given.
    pub scan: Option<u64>,
}

const WORDS: [(&str, Put); 2] = [("touch", Put::Touch), ("interleave", Put::Interleave)];

fn node(value: &str) -> Result<u8, String> {
    whole(value, 0, u64::from(MOST) - 1).map(|n| n as u8)
}

fn put(value: &str) -> Result<Put, String> {
    match node(value) {
        Ok(node) => Ok(Put::On(node)),
        Err(_) => one_of(value, &WORDS)
            .map_err(|known| format!("{known}, or a node from 0 to {}", MOST - 1)),
    }
}

fn put_word(put: Put) -> String {
    match put {
        Put::On(node) => node.to_string(),
        word => word_of(&word, &WORDS),
    }
}

pub(super) const NODES: Row = Row {
    name: "nodes",
    values: "N",
    meaning: "sockets, each with a last-level cache and a part of the memory; 1 unless given",
    set: |o, value| {
        let nodes = whole(value, 1, u64::from(MOST))? as u8;
        o.nodes.nodes = (nodes > 1).then_some(nodes);
        Ok(())
    },
    get: |o| o.nodes.nodes.unwrap_or(1).to_string(),
};
pub(super) const PIN: Row = Row {
    name: "pin",
    values: "NODE|spread",
    meaning: "where vCPUs run: all on one node, or as many on each, neighbours together; 0 unless given",
    set: |o, value| {
        o.nodes.pin = match value {
            "spread" => Pin::Spread,
            _ => Pin::On(node(value).map_err(|what| format!("{what}, or `spread`"))?),
        };
        Ok(())
    },
    get: |o| match o.nodes.pin {
        Pin::On(node) => node.to_string(),
        Pin::Spread => "spread".into(),
    },
};
pub(super) const DATA: Row = Row {
    name: "data",
    values: "touch|interleave|NODE",
    meaning: "where data comes to lie: with the vCPU that first uses it, on one node after the other, on \
              one; touch unless given",
    set: |o, value| put(value).map(|p| o.nodes.data = p),
    get: |o| put_word(o.nodes.data),
};
pub(super) const GPT: Row = Row {
    name: "gpt",
    values: "touch|interleave|NODE",
    meaning: "where the guest's tables come to lie; touch unless given",
    set: |o, value| put(value).map(|p| o.nodes.gpt = p),
    get: |o| put_word(o.nodes.gpt),
};
pub(super) const EPT: Row = Row {
    name: "ept",
    values: "touch|interleave|NODE",
    meaning: "where nested tables come to lie; touch unless given",
    set: |o, value| put(value).map(|p| o.nodes.ept = p),
    get: |o| put_word(o.nodes.ept),
};
pub(super) const LOAD: Row = Row {
    name: "load",
    values: "none|NODE",
    meaning: "other programs keep the memory of this node busy; none unless given",
    set: |o, value| {
        o.nodes.load = match value {
            "none" => None,
            _ => Some(node(value).map_err(|what| format!("{what}, or `none`"))?),
        };
        Ok(())
    },
    get: |o| o.nodes.load.map_or_else(|| "none".into(), |n| n.to_string()),
};

pub(super) const MIGRATE: Row = Row {
    name: "migrate",
    values: "none|gpt|ept|both",
    meaning: "tables move to the node of most of what they point to: the guest's, nested ones; none unless \
              given",
    set: |o, value| one_of(value, &WHICH).map(|which| o.nodes.migrate = which),
    get: |o| word_of(&o.nodes.migrate, &WHICH),
};
pub(super) const COPIES: Row = Row {
    name: "copies",
    values: "none|gpt|ept|both",
    meaning: "each node has a copy of tables: of the guest's, of nested ones; none unless given",
    set: |o, value| one_of(value, &WHICH).map(|which| o.nodes.copies = which),
    get: |o| word_of(&o.nodes.copies, &WHICH),
};
pub(super) const SCAN_EVERY: Row = Row {
    name: "scan",
    values: "N",
    meaning: "migrate: instructions from one scan to the next, doubled by each that moves nothing; 1000000 \
              unless given",
    set: |o, value| {
        let every = whole(value, 1000, 1 << 40)?;
        o.nodes.scan = (every != SCAN).then_some(every);
        Ok(())
    },
    get: |o| o.nodes.scan.unwrap_or(SCAN).to_string(),
};

impl NodeOptions {
    /// Whether these go together.
    ///
    /// # Errors
    /// What does not.
    pub(super) fn check(&self) -> Result<(), String> {
        let Some(nodes) = self.nodes else {
            return match *self == Self::default() {
                true => Ok(()),
                false => {
                    Err("pin, data, gpt, ept, load, migrate, copies and scan are for machines of several nodes; add \
                              nodes=2"
                        .into())
                }
            };
        };
        for (name, put, migrate, copies) in [
            ("gpt", self.gpt, self.migrate.gpt(), self.copies.gpt()),
            ("ept", self.ept, self.migrate.ept(), self.copies.ept()),
        ] {
            if copies && (migrate || put != Put::Touch) {
                return Err(format!(
                    "copies: each node has these tables; leave {name}=, and migrate= of them, out"
                ));
            }
        }
        if self.scan.is_some() && self.migrate == Which::None {
            return Err("scan: nothing moves; add migrate=both".into());
        }
        let puts = [("data", self.data), ("gpt", self.gpt), ("ept", self.ept)];
        let named = puts.into_iter().filter_map(|(name, put)| match put {
            Put::On(node) => Some((name, node)),
            _ => None,
        });
        let pinned = match self.pin {
            Pin::On(node) => Some(("pin", node)),
            Pin::Spread => None,
        };
        let all = named.chain(pinned).chain(self.load.map(|node| ("load", node)));
        for (name, node) in all {
            if node >= nodes {
                return Err(format!("{name}={node}: nodes are 0 to {}", nodes - 1));
            }
        }
        match (self.pin, self.load) {
            (Pin::On(node), Some(load)) if node != load => Ok(()),
            (_, None) => Ok(()),
            (_, Some(load)) => Err(format!(
                "load={load}: a vCPU runs there, and profiles have the latency of busy memory only from \
                 other nodes; pin vCPUs to another"
            )),
        }
    }

    /// The node of each of so many cores.
    fn cores(&self, cores: usize) -> Vec<u8> {
        let nodes = usize::from(self.nodes.unwrap_or(1));
        let of = |core: usize| match self.pin {
            Pin::On(node) => node,
            Pin::Spread => (core * nodes / cores.max(1)) as u8,
        };
        (0..cores).map(of).collect()
    }

    /// The machine's nodes, if there are several: so many cores, so much memory.
    ///
    /// # Errors
    /// The profile has no latency of remote memory.
    pub fn layout(
        &self,
        profile: &Profile,
        cores: usize,
        bytes: u64,
    ) -> Result<Option<NodeLayout>, String> {
        let Some(nodes) = self.nodes else { return Ok(None) };
        let Some(latency) = &profile.nodes else {
            return Err(format!(
                "nodes={nodes}: profile {} has no latency of remote memory; give it a table `[nodes]`, or \
                 take cascade-lake-6252",
                profile.name
            ));
        };
        let local = profile.caches.memory_cycles.value as u64;
        let [remote, loaded] =
            [&latency.remote_cycles, &latency.loaded_cycles].map(|l| l.value as u64 - local);
        let from = |own: u8| {
            let to = |node: u8| match node {
                node if node == own => 0,
                node if Some(node) == self.load => loaded,
                _ => remote,
            };
            (0..nodes).map(to).collect()
        };
        let unplaced = if let Put::On(node) = self.data { Some(node) } else { None };
        Ok(Some(NodeLayout {
            cores: self.cores(cores),
            beyond: (0..nodes).map(from).collect(),
            frames: (bytes >> 12).div_ceil(u64::from(nodes)),
            unplaced,
        }))
    }
}
