//! Made-up programs, whose accesses are known, in every format.

use nestwalk_types::SplitMix64;

/// An instruction: its address and size, and its loads and stores with theirs.
#[derive(Clone, Debug)]
pub struct Ins {
    pub ip: u64,
    pub bytes: u64,
    pub loads: Vec<(u64, u64)>,
    pub stores: Vec<(u64, u64)>,
}

/// An access to one page, as a format that holds it tells it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Access {
    pub fetch: bool,
    pub store: bool,
    pub page: u64,
    /// Cache lines of the page.
    pub lines: u64,
    /// Instructions that retire with it.
    pub instructions: u64,
}

/// One access to each page that the bytes lie in.
fn push(all: &mut Vec<Access>, fetch: bool, store: bool, at: u64, bytes: u64, instructions: u64) {
    let last = at + bytes - 1;
    for page in at >> 12..=last >> 12 {
        let (from, to) = (at.max(page << 12), last.min(page << 12 | 0xfff));
        let lines = (from..=to).fold(0, |lines, byte| lines | 1 << (byte >> 6 & 63));
        let instructions = if page == at >> 12 { instructions } else { 0 };
        all.push(Access { fetch, store, page, lines, instructions });
    }
}

/// A loop over few pages of code and of data, many of whose accesses cross lines and pages.
pub fn program(seed: u64, n: usize) -> Vec<Ins> {
    let mut r = SplitMix64::new(seed);
    let mut address = |pages: u64| (0x60_0000 + (r.below(pages) << 12)) + r.below(4096);
    let mut ins = Vec::new();
    let mut ip = 0x40_0f00;
    for i in 0..n {
        let mut some = |most: u64| -> Vec<(u64, u64)> {
            let count = (address(4) >> 3) % (most + 1);
            (0..count).map(|_| (address(3), [1, 8, 64][address(1) as usize % 3])).collect()
        };
        let (loads, stores) = (some(4), some(2));
        ins.push(Ins { ip, bytes: 1 + ip % 11, loads, stores });
        ip = if i % 40 == 39 { 0x40_0f00 + i as u64 % 7 } else { ip + 1 + ip % 11 };
    }
    ins
}

/// A format, and what of a program it holds.
pub struct Encoded {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub accesses: Vec<Access>,
    pub instructions: u64,
}

/// How a format holds sizes and fetches.
#[derive(Clone, Copy)]
struct Holds {
    sizes: bool,
    fetches: bool,
    instructions: bool,
}

fn accesses(program: &[Ins], holds: Holds) -> Vec<Access> {
    let mut all = Vec::new();
    let size = |bytes| if holds.sizes { bytes } else { 1 };
    for i in program {
        if holds.fetches {
            push(&mut all, true, false, i.ip, size(i.bytes), u64::from(holds.instructions));
        }
        i.loads.iter().for_each(|l| push(&mut all, false, false, l.0, size(l.1), 0));
        i.stores.iter().for_each(|s| push(&mut all, false, true, s.0, size(s.1), 0));
    }
    all
}

fn encoded(name: &'static str, bytes: Vec<u8>, program: &[Ins], holds: Holds) -> Encoded {
    let instructions = if holds.instructions { program.len() as u64 } else { 0 };
    Encoded { name, bytes, accesses: accesses(program, holds), instructions }
}

pub fn lackey(program: &[Ins]) -> Vec<u8> {
    let mut text = String::from("==7== Lackey, an example Valgrind tool\n");
    for i in program {
        text += &format!("I  {:08x},{}\n", i.ip, i.bytes);
        i.loads.iter().for_each(|(a, n)| text += &format!(" L {a:08x},{n}\n"));
        i.stores.iter().for_each(|(a, n)| text += &format!(" S {a:08x},{n}\n"));
    }
    text.into_bytes()
}

/// `struct input_instr`, or with `asid` `struct cloudsuite_instr`, field by field.
fn champsim(i: &Ins, asid: Option<u16>) -> Vec<u8> {
    let places = if asid.is_some() { 4 } else { 2 };
    let mut bytes = i.ip.to_le_bytes().to_vec();
    bytes.extend(vec![0; 2 + places + 4]);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    for (items, n) in [(&i.stores, places), (&i.loads, 4)] {
        let addresses = items.iter().map(|item| item.0).chain([0; 4]).take(n);
        bytes.extend(addresses.flat_map(u64::to_le_bytes));
    }
    if let Some(asid) = asid {
        bytes.extend(asid.to_le_bytes());
        bytes.resize(96, 0);
    }
    bytes
}

fn entry(kind: u16, size: u64, value: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(size as u16).to_le_bytes(), &value.to_le_bytes()].concat()
}

fn drmemtrace(program: &[Ins]) -> Vec<u8> {
    let mut bytes = [entry(25, 0, 3), entry(22, 4, 7), entry(24, 4, 6)].concat();
    for i in program {
        bytes.extend(entry(10, i.bytes, i.ip));
        i.loads.iter().for_each(|(a, n)| bytes.extend(entry(0, *n, *a)));
        i.stores.iter().for_each(|(a, n)| bytes.extend(entry(1, *n, *a)));
    }
    bytes.extend([entry(23, 4, 7), entry(26, 0, 0)].concat());
    bytes
}

/// Lines of data accesses: what is written of one, by address of the instruction, kind, address, size.
fn lines(program: &[Ins], line: impl Fn(u64, bool, u64, u64) -> String) -> String {
    let mut text = String::new();
    for i in program {
        i.loads.iter().for_each(|(a, n)| text += &line(i.ip, false, *a, *n));
        i.stores.iter().for_each(|(a, n)| text += &line(i.ip, true, *a, *n));
    }
    text
}

fn pinatrace(program: &[Ins]) -> Vec<u8> {
    let line = |ip, store, a, n| {
        format!("{ip:#x}: {} {a:#18x} {n:2} {:#18x}\n", if store { 'W' } else { 'R' }, a ^ ip)
    };
    let head = "#\n# Memory Access Trace Generated By Pin\n#\n";
    format!("{head}{}#eof\n", lines(program, line)).into_bytes()
}

fn dinero(program: &[Ins]) -> Vec<u8> {
    let mut text = String::new();
    for i in program {
        text += &format!("i {:x} {:x}\n", i.ip, i.bytes);
        i.loads.iter().for_each(|(a, n)| text += &format!("r {a:x} {n:x} a comment\n"));
        i.stores.iter().for_each(|(a, n)| text += &format!("w {a:x} {n:x}\n"));
    }
    text.into_bytes()
}

fn perf(program: &[Ins]) -> Vec<u8> {
    let line = |ip, store, a: u64, _| {
        let op = if store { "STORE" } else { "LOAD" };
        format!(
            "  my prog  {:5} [002] {}.{:06}:      10000 cpu/mem-loads,ldlat=30/P: {a:16x}     \
             5080021 |OP {op}|LVL L1 hit|SNP None|TLB L1 or L2 hit|LCK No|BLK  N/A    5   7    0   \
             {ip:16x} main+0x4 (/bin/prog)\n",
            4711, 12, a
        )
    };
    lines(program, line).into_bytes()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A message of gem5's, behind its length: fields that are varints, by number.
fn message(fields: &[(u64, u64)]) -> Vec<u8> {
    let body: Vec<u8> =
        fields.iter().flat_map(|f| [varint(f.0 << 3), varint(f.1)].concat()).collect();
    [varint(body.len() as u64), body].concat()
}

fn gem5(program: &[Ins]) -> Vec<u8> {
    let name = b"system.monitor";
    let header =
        [&[0x0a, name.len() as u8][..], name, &[0x18], &varint(1_000_000_000_000)].concat();
    let mut bytes = [&b"gem5"[..], &varint(header.len() as u64), &header].concat();
    let mut tick = 0;
    let mut packet = |command, address, size, flags, pc| {
        tick += 500;
        let fields = [(1, tick), (2, command), (3, address), (4, size), (5, flags), (7, pc)];
        bytes.extend(message(&fields));
    };
    for i in program {
        packet(1, i.ip, i.bytes, 0x100, i.ip);
        // A response, and a prefetch, are no accesses.
        packet(2, i.ip, i.bytes, 0x100, i.ip);
        packet(1, i.ip + 0x10_0000, 64, 0x0100_0000, i.ip);
        i.loads.iter().for_each(|(a, n)| packet(1, *a, *n, 0, i.ip));
        i.stores.iter().for_each(|(a, n)| packet(4, *a, *n, 0, i.ip));
    }
    bytes
}

/// The program in every format.
pub fn every_format(program: &[Ins]) -> Vec<Encoded> {
    let all = Holds { sizes: true, fetches: true, instructions: true };
    let records = |asid: Option<u16>| program.iter().flat_map(|i| champsim(i, asid)).collect();
    let no_sizes = Holds { sizes: false, ..all };
    let data = Holds { fetches: false, instructions: false, ..all };
    vec![
        encoded("lackey", lackey(program), program, all),
        encoded("champsim", records(None), program, no_sizes),
        encoded("cloudsuite", records(Some(9)), program, no_sizes),
        encoded("drmemtrace", drmemtrace(program), program, all),
        encoded("dinero", dinero(program), program, all),
        encoded("pinatrace", pinatrace(program), program, data),
        encoded("perf", perf(program), program, Holds { sizes: false, ..data }),
        encoded("gem5", gem5(program), program, Holds { instructions: false, ..all }),
    ]
}
