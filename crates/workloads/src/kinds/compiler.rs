//! `compiler`: a small compiler that works function by function in arenas.
//!
//! Source: our own, in the manner of GCC and LLVM: a symbol table that lives as long as the
//! process; for every function an arena of syntax nodes and one of instructions, each growing by
//! chunks of `chunk_kib` from mmap, all freed by one munmap when the function is done. Passes:
//! parse (source text, symbol look-up for each identifier, a 48-byte node per token), fold
//! (bottom-up over the tree), lower (a 32-byte instruction per node), count uses (backwards over
//! the instructions), emit (8 bytes of code each). Functions have 1,024 nodes up to what half of
//! the footprint holds (128 MiB at most), log-uniformly.
//!
//! Real: parsing, folding, lowering, emitting; the value that the folded tree has is the one that
//! the emitted code computes, and the one that the source says. Kept: the nodes and instructions of
//! the function at hand, about half of the arena's bytes. Implicit: the source text, postfix
//! expressions over zipfian identifiers; and the symbol table, of 8-byte slots and 96-byte nodes,
//! in which a look-up finds its slot at once.
//! Instructions are estimates: they were not counted in compiled code.

use crate::Workload;
use crate::data::{Zipf, hash2, log2_ceil, permutation_key};
use crate::driver::{About, Driver, Kernel, PROCESS};
use crate::layout::{AddressSpace, Mapping, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use nestwalk_types::{Control, Gva, Permutation, Source, SplitMix64, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "compiler",
    summary: "compiles functions in arenas that are mapped, filled once and freed in bulk",
    footprint: 1 << 30,
    settings: &[
        Setting {
            name: "chunk_kib",
            summary: "length of an arena's chunk, KiB",
            default: 128,
            range: (4, 1 << 16),
        },
        Setting { name: "functions", summary: "functions", default: 1000, range: (1, 1 << 30) },
    ],
    make,
};

const TEXT: Site = Site::new(0, 20);
const SLOT: Site = Site::new(1, 30);
const SYMBOL_HASH: Site = Site::new(2, 3);
const SYMBOL_NAME: Site = Site::new(3, 4);
const SYMBOL_VALUE: Site = Site::new(4, 4);
const NODE_STORE: Site = Site::new(5, 4);
const FOLD_KIND: Site = Site::new(6, 6);
const FOLD_CHILD: Site = Site::new(7, 3);
const FOLD_VALUE: Site = Site::new(8, 3);
const FOLD_STORE: Site = Site::new(9, 6);
const LOWER_KIND: Site = Site::new(10, 6);
const LOWER_CHILD: Site = Site::new(11, 4);
const CODE_STORE: Site = Site::new(12, 4);
const USE_LOAD: Site = Site::new(13, 5);
const USE_COUNT: Site = Site::new(14, 4);
const USE_STORE: Site = Site::new(15, 1);
const EMIT_LOAD: Site = Site::new(16, 4);
const EMIT_STORE: Site = Site::new(17, 8);

/// Bytes of a syntax node: kind, type, location, two children, value.
const NODE: u64 = 48;
const LEFT_AT: u64 = 16;
const VALUE_AT: u64 = 32;
/// Bytes of an instruction: operation, two operands, uses.
const CODE: u64 = 32;
const USES_AT: u64 = 24;
const SYMBOL: u64 = 96;
const NODES_MIN: u64 = 1024;
const ARENA_MAX: u64 = 128 << 20;
/// Source text and output are buffers that are used over and over.
const BUFFER: u64 = 32 << 10;
/// Tokens or instructions per step.
const STEP: usize = 16;

/// A token of the source: an identifier, or an operator on the two values before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Name(u64),
    Operator(u8),
}

fn apply(operator: u8, a: u64, b: u64) -> u64 {
    match operator {
        0 => a.wrapping_add(b),
        1 => a.wrapping_sub(b),
        2 => a.wrapping_mul(b),
        _ => a ^ b.rotate_left(7),
    }
}

/// A function's source: an expression in postfix notation with `names` identifiers.
struct Text {
    random: SplitMix64,
    names_left: u64,
    depth: u64,
}

impl Text {
    fn next(&mut self, symbols: &Zipf) -> Option<Token> {
        let may_join = self.depth >= 2;
        if self.names_left == 0 && !may_join {
            return None;
        }
        // The deeper, the likelier an operator: statements keep the depth small.
        let join = may_join && (self.names_left == 0 || self.random.below(16) < self.depth);
        if join {
            self.depth -= 1;
            Some(Token::Operator(self.random.below(4) as u8))
        } else {
            self.depth += 1;
            self.names_left -= 1;
            Some(Token::Name(symbols.next(&mut self.random)))
        }
    }
}

#[derive(Clone, Copy)]
struct Node {
    token: Token,
    children: [u32; 2],
    value: u64,
    address: u64,
}

/// Memory for objects of one size that are freed all at once.
#[derive(Default)]
struct Arena {
    next: u64,
    end: u64,
}

/// Where all arenas of a function lie: one chunk below the other, as mmap gives them.
struct Chunks {
    top: u64,
    bottom: u64,
    length: u64,
}

impl Chunks {
    /// Address of a new object.
    fn allocate(&mut self, m: &mut Recorder, arena: &mut Arena, bytes: u64) -> u64 {
        if arena.next + bytes > arena.end {
            self.bottom -= self.length;
            let chunk = Mapping { start: self.bottom, bytes: self.length };
            m.control(chunk.control(PROCESS));
            *arena = Arena { next: self.bottom, end: self.bottom + self.length };
        }
        arena.next += bytes;
        arena.next - bytes
    }
    const fn live_bytes(&self) -> u64 {
        self.top - self.bottom
    }
    /// Frees all objects of all arenas.
    fn free_all(&mut self, m: &mut Recorder) {
        let start = Gva::new(self.bottom);
        m.control(Control::Unmap { process: PROCESS, start, bytes: self.live_bytes() });
        self.bottom = self.top;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pass {
    Parse,
    Fold,
    Lower,
    CountUses,
    Emit,
}

struct Compiler {
    slots: Region,
    symbols_at: Region,
    text_at: Region,
    output_at: Region,
    slot_of: Permutation,
    symbols: Zipf,
    nodes_max: u64,
    seed: u64,
    chunks: Chunks,
    tree: Arena,
    code: Arena,
    text: Text,
    text_read: u64,
    written: u64,
    /// Nodes not yet joined by an operator.
    stack: Vec<u32>,
    nodes: Vec<Node>,
    /// Instructions' addresses; instruction i computes node i.
    instructions: Vec<u64>,
    /// What the emitted code has computed, instruction by instruction.
    results: Vec<u64>,
    pass: Pass,
    next: usize,
    done: u64,
    functions: u64,
    wrong: u64,
}

/// Value of a symbol.
const fn symbol_value(symbol: u64) -> u64 {
    mix64(symbol + 1)
}

impl Compiler {
    fn new(
        (symbols, nodes_max): (u64, u64),
        chunk: u64,
        functions: u64,
        seed: u64,
        space: &mut AddressSpace,
    ) -> Self {
        let slot_bits = slot_bits(symbols);
        let buffers = space.heap(2 * BUFFER);
        let slots = space.malloc(8 << slot_bits);
        let symbols_at = space.malloc(symbols * SYMBOL);
        let top = space.free_top();
        let mut this = Self {
            slots,
            symbols_at,
            text_at: Region { bytes: BUFFER, ..buffers },
            output_at: Region { base: buffers.base + BUFFER, bytes: BUFFER },
            slot_of: Permutation::new(slot_bits, permutation_key(mix64(seed))),
            symbols: Zipf::new(symbols, 0.99),
            nodes_max,
            seed,
            chunks: Chunks { top, bottom: top, length: chunk },
            tree: Arena::default(),
            code: Arena::default(),
            text: Text { random: SplitMix64::new(0), names_left: 0, depth: 0 },
            text_read: 0,
            written: 0,
            stack: Vec::new(),
            nodes: Vec::new(),
            instructions: Vec::new(),
            results: Vec::new(),
            pass: Pass::Parse,
            next: 0,
            done: 0,
            functions,
            wrong: 0,
        };
        this.text = this.source(0);
        this
    }

    /// The source of a function.
    fn source(&self, function: u64) -> Text {
        let mut random = SplitMix64::new(hash2(function, self.seed));
        let span = (self.nodes_max as f64 / NODES_MIN as f64).max(1.0);
        let nodes = NODES_MIN as f64 * span.powf(random.unit());
        Text { random, names_left: (nodes / 2.0) as u64, depth: 0 }
    }

    /// Finds a symbol in the table.
    fn look_up(&self, m: &mut Recorder, symbol: u64) -> u64 {
        m.load(SLOT, self.slots.at(self.slot_of.apply(symbol), 8), 8);
        let at = self.symbols_at.at(symbol, SYMBOL);
        m.load(SYMBOL_HASH, at, 4);
        // The name, 16 bytes, follows the 32 bytes of the node's head.
        m.load_each(SYMBOL_NAME, at + 32, 8, 2);
        m.load(SYMBOL_VALUE, at + 8, 8);
        symbol_value(symbol)
    }

    /// One token. `false` when the function's source has ended.
    fn parse(&mut self, m: &mut Recorder) -> bool {
        let Some(token) = self.text.next(&self.symbols) else { return false };
        m.load(TEXT, self.text_at.base + (self.text_read & (BUFFER / 8 - 1)) * 8, 8);
        self.text_read += 1;
        let (children, value) = match token {
            Token::Name(symbol) => ([u32::MAX; 2], self.look_up(m, symbol)),
            Token::Operator(_) => {
                let right = self.stack.pop().unwrap_or(0);
                ([self.stack.pop().unwrap_or(0), right], 0)
            }
        };
        let address = self.chunks.allocate(m, &mut self.tree, NODE);
        m.store_each(NODE_STORE, address, 8, NODE / 8);
        self.stack.push(self.nodes.len() as u32);
        self.nodes.push(Node { token, children, value, address });
        true
    }

    fn fold(&mut self, m: &mut Recorder, i: usize) {
        let node = self.nodes[i];
        m.load(FOLD_KIND, node.address, 4);
        let Token::Operator(operator) = node.token else { return };
        let [left, right] = node.children.map(|c| self.nodes[c as usize]);
        for (n, child) in [left, right].iter().enumerate() {
            m.load(FOLD_CHILD, node.address + LEFT_AT + 8 * n as u64, 8);
            m.load(FOLD_VALUE, child.address + VALUE_AT, 8);
        }
        self.nodes[i].value = apply(operator, left.value, right.value);
        m.store(FOLD_STORE, node.address + VALUE_AT, 8);
    }

    fn lower(&mut self, m: &mut Recorder, i: usize) {
        let node = self.nodes[i];
        m.load(LOWER_KIND, node.address, 4);
        m.load_each(LOWER_CHILD, node.address + LEFT_AT, 8, 2);
        let address = self.chunks.allocate(m, &mut self.code, CODE);
        m.store_each(CODE_STORE, address, 8, CODE / 8);
        self.instructions.push(address);
    }

    fn count_uses(&self, m: &mut Recorder, i: usize) {
        m.load(USE_LOAD, self.instructions[i], 8);
        if let Token::Operator(_) = self.nodes[i].token {
            for child in self.nodes[i].children {
                let uses = self.instructions[child as usize] + USES_AT;
                m.load(USE_COUNT, uses, 8);
                m.store(USE_STORE, uses, 8);
            }
        }
    }

    fn emit(&mut self, m: &mut Recorder, i: usize) {
        m.load_each(EMIT_LOAD, self.instructions[i], 8, 3);
        m.store(EMIT_STORE, self.output_at.base + (self.written & (BUFFER / 8 - 1)) * 8, 8);
        self.written += 1;
        // The code is run as it is written.
        let Node { token, children, .. } = self.nodes[i];
        let result = match token {
            Token::Name(symbol) => symbol_value(symbol),
            Token::Operator(o) => {
                let [a, b] = children.map(|c| self.results[c as usize]);
                apply(o, a, b)
            }
        };
        self.results.push(result);
    }

    /// Frees the function and goes on to the next.
    fn finish(&mut self, m: &mut Recorder) {
        if self.results.last() != self.nodes.last().map(|n| &n.value) {
            self.wrong += 1;
        }
        self.chunks.free_all(m);
        (self.tree, self.code) = (Arena::default(), Arena::default());
        self.stack.clear();
        self.nodes.clear();
        self.instructions.clear();
        self.results.clear();
        self.done += 1;
        self.text = self.source(self.done);
    }
}

impl Kernel for Compiler {
    /// Some tokens of one pass.
    fn step(&mut self, m: &mut Recorder) -> bool {
        if self.pass == Pass::Parse {
            for _ in 0..STEP {
                if !self.parse(m) {
                    self.pass = Pass::Fold;
                    return true;
                }
            }
            return true;
        }
        let n = self.nodes.len();
        let to = (self.next + STEP).min(n);
        for i in self.next..to {
            match self.pass {
                Pass::Fold => self.fold(m, i),
                Pass::Lower => self.lower(m, i),
                Pass::CountUses => self.count_uses(m, n - 1 - i),
                Pass::Emit | Pass::Parse => self.emit(m, i),
            }
        }
        self.next = to;
        if to < n {
            return true;
        }
        self.next = 0;
        self.pass = match self.pass {
            Pass::Parse => Pass::Fold,
            Pass::Fold => Pass::Lower,
            Pass::Lower => Pass::CountUses,
            Pass::CountUses => Pass::Emit,
            Pass::Emit => {
                self.finish(m);
                Pass::Parse
            }
        };
        self.pass != Pass::Parse || !self.done.is_multiple_of(self.functions)
    }

    fn verify(&self) -> Result<(), String> {
        match self.wrong {
            0 => Ok(()),
            n => Err(format!("the code of {n} of {} functions computes another value", self.done)),
        }
    }
}

/// Base-2 logarithm of the slots for so many symbols: at most three quarters full.
const fn slot_bits(symbols: u64) -> u32 {
    log2_ceil((symbols * 4).div_ceil(3))
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let chunk = options.get("chunk_kib") << 10;
    let arenas = (spec.footprint / 2).min(ARENA_MAX);
    // Two chunks may be filled in part only.
    let nodes_max = arenas.saturating_sub(2 * chunk) / (NODE + CODE);
    if nodes_max < NODES_MIN {
        let needed = 2 * (2 * chunk + NODES_MIN * (NODE + CODE));
        let workload = WORKLOAD.name;
        return Err(WorkloadError::TooSmall { workload, needed, footprint: spec.footprint });
    }
    let rest = spec.footprint - arenas - 2 * BUFFER - (12 << 10);
    let mut symbols = rest / SYMBOL;
    while symbols * SYMBOL + (8 << slot_bits(symbols)) > rest {
        symbols -= symbols / 256 + 1;
    }
    let mut space = AddressSpace::new();
    let functions = options.get("functions");
    let size = (symbols, nodes_max);
    let kernel = Compiler::new(size, chunk, functions, spec.seed, &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!(
            "compiler, {symbols} symbols, functions of up to {nodes_max} nodes in arenas of \
             {chunk}-byte chunks"
        ),
        approximations: &["instructions between accesses are estimates"],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests;
