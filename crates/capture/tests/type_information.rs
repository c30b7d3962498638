//! The kernel's type information, from files made by hand after the format's documents.

use nestwalk_capture::btf::{TaskLayout, task_layout};

const INT: u32 = 1;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const VAR: u32 = 14;
const DATASEC: u32 = 15;

/// BTF that grows type by type; types are numbered from 1.
#[derive(Default)]
struct Btf {
    types: Vec<u32>,
    names: Vec<u8>,
}

impl Btf {
    fn new() -> Btf {
        Btf { types: Vec::new(), names: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.names.len() as u32;
        self.names.extend(name.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: &str, kind: u32, count: usize, refers: u32, body: &[u32]) {
        let name = self.name(name);
        self.types.extend([name, kind << 24 | count as u32, refers]);
        self.types.extend(body);
    }

    /// A structure or union with members of (name, type, offset in bits).
    fn members(&mut self, name: &str, kind: u32, members: &[(&str, u32, u32)]) {
        let body: Vec<u32> =
            members.iter().flat_map(|&(name, of, bits)| [self.name(name), of, bits]).collect();
        self.add(name, kind, members.len(), 0, &body);
    }

    /// The section in an ELF file: header, names of sections, section, three section headers.
    fn elf(&self) -> Vec<u8> {
        let words =
            |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
        let types = words(&self.types);
        let (types_bytes, names_bytes) = (types.len() as u32, self.names.len() as u32);
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        btf.extend(words(&[24, 0, types_bytes, types_bytes, names_bytes]));
        btf.extend(types);
        btf.extend(&self.names);
        let names = b"\0.shstrtab\0.BTF\0";
        let (names_at, btf_at) = (64, 64 + names.len() as u64);
        let headers_at = btf_at + btf.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.resize(0x28, 0);
        file.extend(headers_at.to_le_bytes());
        file.resize(0x3a, 0);
        for field in [64_u16, 3, 1] {
            file.extend(field.to_le_bytes()); // size of a section header, their number, the names'
        }
        file.extend(names);
        file.extend(&btf);
        let header = |name: u32, at: u64, size: u64| {
            let mut header = name.to_le_bytes().to_vec();
            header.resize(0x18, 0);
            header.extend([at, size].map(u64::to_le_bytes).concat());
            header.resize(64, 0);
            header
        };
        file.extend(header(0, 0, 0));
        file.extend(header(1, names_at, names.len() as u64));
        file.extend(header(11, btf_at, btf.len() as u64));
        file
    }
}

/// Type 1 is a number, type 2 an enumeration between, type 3 the task.
fn with_task() -> Btf {
    let mut btf = Btf::new();
    btf.add("int", INT, 0, 4, &[0x0100_0020]);
    let zero = btf.name("ZERO");
    btf.add("state", ENUM, 1, 4, &[zero, 0]);
    btf.members(
        "task_struct",
        STRUCT,
        &[("state", 2, 0), ("pid", 1, 0x40), ("tgid", 1, 0x60), ("comm", 1, 0x1000)],
    );
    btf
}

#[test]
fn a_variable_of_its_own_is_found() {
    let mut btf = with_task();
    btf.add("other", VAR, 0, 1, &[1]);
    btf.add("current_task", VAR, 0, 3, &[1]);
    btf.add(".data..percpu", DATASEC, 2, 0, &[4, 0x10, 4, 5, 0x21d80, 8]);
    let expected = TaskLayout { current_task: 0x21d80, comm: 0x200, pid: 8, tgid: 12 };
    assert_eq!(task_layout(&btf.elf()), Some(expected));
}

/// As Linux 6.2 to 6.14: `struct pcpu_hot { union { struct { struct task_struct *current_task; …`,
/// and as with randomised structures: the task's members in a nameless one.
#[test]
fn nameless_members_are_looked_into() {
    let mut btf = Btf::new();
    btf.add("int", INT, 0, 4, &[0x0100_0020]);
    btf.members("", STRUCT, &[("pid", 1, 0), ("tgid", 1, 0x20), ("comm", 1, 0x40)]);
    btf.members("task_struct", STRUCT, &[("first", 1, 0), ("", 2, 0x80)]);
    btf.members("", STRUCT, &[("preempt_count", 1, 0), ("current_task", 1, 0x40)]);
    btf.members("", UNION, &[("", 4, 0), ("pad", 1, 0)]);
    btf.members("pcpu_hot", STRUCT, &[("", 5, 0x80)]);
    btf.add("pcpu_hot", VAR, 0, 6, &[1]);
    btf.add(".data..percpu", DATASEC, 1, 0, &[7, 0x1000, 64]);
    let expected = TaskLayout { current_task: 0x1018, comm: 0x18, pid: 0x10, tgid: 0x14 };
    assert_eq!(task_layout(&btf.elf()), Some(expected));
}

#[test]
fn what_is_not_there_is_not_found() {
    assert_eq!(task_layout(b""), None);
    assert_eq!(task_layout(b"\x7fELF\x02\x01"), None);
    assert_eq!(task_layout(&with_task().elf()), None, "no per-CPU section");
    let mut cyclic = Btf::new();
    // A structure that is its own nameless member.
    cyclic.members("task_struct", STRUCT, &[("", 1, 0)]);
    cyclic.add("current_task", VAR, 0, 1, &[1]);
    cyclic.add(".data..percpu", DATASEC, 1, 0, &[2, 0, 8]);
    assert_eq!(task_layout(&cyclic.elf()), None);
}

/// Every truncation and every changed byte gives an answer, and none a panic.
#[test]
fn damage_is_no_panic() {
    let mut btf = with_task();
    btf.add("current_task", VAR, 0, 3, &[1]);
    btf.add(".data..percpu", DATASEC, 1, 0, &[4, 0x21d80, 8]);
    let file = btf.elf();
    let whole = task_layout(&file);
    assert!(whole.is_some());
    let mut lost = 0;
    for length in 0..file.len() {
        lost += usize::from(task_layout(&file[..length]).is_none());
    }
    assert!(lost >= file.len() - 64, "a file without its last section header has no BTF: {lost}");
    for at in 0..file.len() {
        for value in [0x00, 0x7f, 0xff] {
            let mut damaged = file.clone();
            damaged[at] = value;
            let _ = task_layout(&damaged);
        }
    }
}
