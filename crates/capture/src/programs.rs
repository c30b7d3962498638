//! Two programs for the guest, as bytes: the launcher and the marker.
//!
//! The plugin must know where in the guest's life the command begins and ends. It finds *marks*: a
//! `nopl 0xF5A000NN(%rax)`, which does nothing on any processor and which no compiler emits. The
//! programs are assembled here, so that neither a compiler nor anything but this crate is needed:
//! both are static ELF files (System V ABI, AMD64 supplement, chapters 4 and 5) of one segment.

/// Mark of the launcher when the command starts: right before its `execve`.
pub const MARK_START: u8 = 1;
/// Mark of the launcher when the command has ended: right after `wait4` returned.
pub const MARK_END: u8 = 2;
/// The mark with which a program of the guest says: the region of interest begins here.
pub const MARK_REGION: u8 = 3;
/// The largest mark.
pub const MARK_MAX: u8 = 9;

/// What the launcher writes to the port for the exit status if the command could not be started.
pub(crate) const NOT_STARTED: &[u8] = b"not started\n";
/// That port, for `open`.
const STATUS_PORT: &[u8] = b"/dev/ttyS2\0";

/// Where the marker is in a guest, without the leading slash.
pub(crate) const MARKER_PATH: &str = "usr/bin/nestwalk-mark";

/// The instruction of mark `number`: `nopl 0xF5A000NN(%rax)` (Intel SDM volume 2B, NOP, `0F 1F /0`).
#[must_use]
pub fn mark_instruction(number: u8) -> [u8; 7] {
    [0x0f, 0x1f, 0x80, number, 0x00, 0xa0, 0xf5]
}

/// The launcher, `run PATH NAME ARGUMENT…`: forks; the child executes mark 1 and then PATH with the
/// arguments NAME ARGUMENT…; the parent waits for the child and executes mark 2.
///
/// If PATH cannot be executed, the child says so at the port for the exit status, since a command may
/// end with any status. It exits with the child's status, with 128 + N if signal N ended it, 127 if PATH
/// does not exist, 126 if it cannot be executed, 125 if it was itself called wrongly.
#[must_use]
pub fn launcher() -> Vec<u8> {
    const ENOENT: u8 = 2;
    const EINTR: u8 = 4;
    let mut code = Code::default();
    code.put(&[0x48, 0x8b, 0x1c, 0x24]); // mov (%rsp), %rbx: the number of arguments
    code.put(&[0xbf, 125, 0, 0, 0]); // mov $125, %edi
    code.put(&[0x48, 0x83, 0xfb, 3]); // cmp $3, %rbx
    code.jump(&[0x0f, 0x8c], "exit"); // jl
    code.system_call(57); // fork
    code.put(&[0x85, 0xc0]); // test %eax, %eax
    code.jump(&[0x0f, 0x88], "exit"); // js
    code.jump(&[0x0f, 0x85], "parent"); // jnz
    code.put(&[0x48, 0x8b, 0x7c, 0x24, 16]); // mov 16(%rsp), %rdi: PATH
    code.put(&[0x48, 0x8d, 0x74, 0x24, 24]); // lea 24(%rsp), %rsi: NAME and what follows
    code.put(&[0x48, 0x8d, 0x54, 0xdc, 16]); // lea 16(%rsp,%rbx,8), %rdx: the environment
    code.put(&mark_instruction(MARK_START));
    code.system_call(59); // execve
    code.put(&[0x41, 0x89, 0xc4]); // mov %eax, %r12d: why it came back
    code.jump(&[0x48, 0x8d, 0x3d], "port"); // lea port(%rip), %rdi
    code.put(&[0xbe, 0x01, 0x09, 0, 0]); // mov $(O_WRONLY | O_NONBLOCK | O_NOCTTY), %esi
    code.system_call(2); // open
    code.put(&[0x89, 0xc7]); // mov %eax, %edi; if it failed, so does the write
    code.jump(&[0x48, 0x8d, 0x35], "words"); // lea words(%rip), %rsi
    code.put(&[0xba, NOT_STARTED.len() as u8, 0, 0, 0]); // mov, %edx
    code.system_call(1); // write
    code.put(&[0x44, 0x89, 0xe0]); // mov %r12d, %eax
    code.put(&[0xbf, 127, 0, 0, 0]); // mov $127, %edi
    code.put(&[0x83, 0xf8, ENOENT.wrapping_neg()]); // cmp $-ENOENT, %eax
    code.jump(&[0x0f, 0x84], "exit"); // je
    code.put(&[0xff, 0xcf]); // dec %edi
    code.jump(&[0xe9], "exit");
    code.label("parent");
    code.put(&[0x89, 0xc7]); // mov %eax, %edi: the child
    code.put(&[0x48, 0x83, 0xec, 16]); // sub $16, %rsp
    code.label("wait");
    code.put(&[0x48, 0x89, 0xe6]); // mov %rsp, %rsi: the status goes there
    code.put(&[0x31, 0xd2]); // xor %edx, %edx
    code.put(&[0x45, 0x31, 0xd2]); // xor %r10d, %r10d
    code.system_call(61); // wait4
    code.put(&[0x83, 0xf8, EINTR.wrapping_neg()]); // cmp $-EINTR, %eax
    code.jump(&[0x0f, 0x84], "wait"); // je
    code.put(&mark_instruction(MARK_END));
    code.put(&[0x8b, 0x04, 0x24]); // mov (%rsp), %eax
    code.put(&[0x89, 0xc7]); // mov %eax, %edi
    code.put(&[0x83, 0xe7, 0x7f]); // and $0x7f, %edi: the signal
    code.jump(&[0x0f, 0x85], "signal"); // jnz
    code.put(&[0x0f, 0xb6, 0xfc]); // movzbl %ah, %edi: the status
    code.jump(&[0xe9], "exit");
    code.label("signal");
    code.put(&[0x81, 0xc7, 128, 0, 0, 0]); // add $128, %edi
    code.label("exit");
    code.system_call(231); // exit_group
    code.label("port");
    code.put(STATUS_PORT);
    code.label("words");
    code.put(NOT_STARTED);
    code.elf()
}

/// The marker, `nestwalk-mark N`: executes mark N, of 1 to 9.
#[must_use]
pub fn marker() -> Vec<u8> {
    const USAGE: &[u8] =
        b"usage: nestwalk-mark N, with N from 1 to 9; 3 = the region of interest begins\n";
    let mut code = Code::default();
    code.put(&[0x48, 0x83, 0x3c, 0x24, 2]); // cmpq $2, (%rsp): the number of arguments
    code.jump(&[0x0f, 0x85], "usage"); // jne
    code.put(&[0x48, 0x8b, 0x44, 0x24, 16]); // mov 16(%rsp), %rax
    code.put(&[0x0f, 0xb6, 0x08]); // movzbl (%rax), %ecx
    code.put(&[0x80, 0x78, 1, 0]); // cmpb $0, 1(%rax): one digit only
    code.jump(&[0x0f, 0x85], "usage"); // jne
    code.put(&[0x83, 0xe9, b'1']); // sub $'1', %ecx
    code.put(&[0x83, 0xf9, MARK_MAX - 1]); // cmp $8, %ecx
    code.jump(&[0x0f, 0x87], "usage"); // ja
    code.put(&[0xc1, 0xe1, 4]); // shl $4, %ecx: 16 bytes for each mark
    code.jump(&[0x48, 0x8d, 0x15], "marks"); // lea marks(%rip), %rdx
    code.put(&[0x48, 0x01, 0xca]); // add %rcx, %rdx
    code.put(&[0xff, 0xe2]); // jmp *%rdx
    code.label("marks");
    for number in 1..=MARK_MAX {
        code.put(&mark_instruction(number));
        code.jump(&[0xe9], "done");
        code.put(&[0xcc; 4]); // never reached
    }
    code.label("done");
    code.put(&[0x31, 0xff]); // xor %edi, %edi
    code.label("exit");
    code.system_call(231); // exit_group
    code.label("usage");
    code.put(&[0xbf, 2, 0, 0, 0]); // mov $2, %edi: standard error
    code.jump(&[0x48, 0x8d, 0x35], "text"); // lea text(%rip), %rsi
    code.put(&[0xba, USAGE.len() as u8, 0, 0, 0]); // mov, %edx
    code.system_call(1); // write
    code.put(&[0xbf, 2, 0, 0, 0]); // mov $2, %edi
    code.jump(&[0xe9], "exit");
    code.label("text");
    code.put(USAGE);
    code.elf()
}

/// Machine code with labels; every reference to one is 32 bits relative to the instruction's end.
#[derive(Default)]
struct Code {
    bytes: Vec<u8>,
    labels: Vec<(&'static str, usize)>,
    references: Vec<(&'static str, usize)>,
}

impl Code {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// `mov $number, %eax; syscall`: clobbers RAX, RCX and R11 only.
    fn system_call(&mut self, number: u8) {
        self.put(&[0xb8, number, 0, 0, 0, 0x0f, 0x05]);
    }

    fn label(&mut self, name: &'static str) {
        self.labels.push((name, self.bytes.len()));
    }

    /// An instruction whose last four bytes are the distance to `label`.
    fn jump(&mut self, opcode: &[u8], label: &'static str) {
        self.put(opcode);
        self.references.push((label, self.bytes.len()));
        self.put(&[0; 4]);
    }

    /// The whole file: ELF header, one program header, the code.
    fn elf(mut self) -> Vec<u8> {
        /// Where static programs of this architecture are linked by default.
        const BASE: u64 = 0x40_0000;
        const HEADER_BYTES: u64 = 64;
        const PROGRAM_HEADER_BYTES: u64 = 56;
        for (name, at) in &self.references {
            let target = self.labels.iter().find(|(label, _)| label == name).map_or(0, |&(_, t)| t);
            let distance = target as i32 - (*at as i32 + 4);
            self.bytes[*at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        let start = HEADER_BYTES + PROGRAM_HEADER_BYTES;
        let size = start + self.bytes.len() as u64;
        let mut elf = Vec::with_capacity(size as usize);
        // Magic, 64 bits, little endian, version 1, System V, padding.
        elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        elf.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
        elf.extend_from_slice(&62u16.to_le_bytes()); // EM_X86_64
        elf.extend_from_slice(&1u32.to_le_bytes()); // EV_CURRENT
        for field in [BASE + start, HEADER_BYTES, 0] {
            elf.extend_from_slice(&field.to_le_bytes()); // entry, program headers, no sections
        }
        elf.extend_from_slice(&0u32.to_le_bytes()); // flags
        for field in [HEADER_BYTES as u16, PROGRAM_HEADER_BYTES as u16, 1, 64, 0, 0] {
            elf.extend_from_slice(&field.to_le_bytes());
        }
        elf.extend_from_slice(&1u32.to_le_bytes()); // PT_LOAD
        elf.extend_from_slice(&5u32.to_le_bytes()); // readable, executable
        for field in [0, BASE, BASE, size, size, 0x1000] {
            elf.extend_from_slice(&field.to_le_bytes()); // offset, addresses, sizes, alignment
        }
        elf.extend_from_slice(&self.bytes);
        elf
    }
}
