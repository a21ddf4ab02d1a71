//! How a VM ended, as a value: for programs (serde), for people (`Display`) and for exit statuses.

use std::fmt;

use serde::Serialize;

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The guest wrote its exit code to the exit port (a 32-bit write to I/O port 0xF4).
    Exited {
        /// The code that the guest wrote.
        code: u32,
    },
    /// The guest asked for a reset through the keyboard controller (0xFE to I/O port 0x64).
    Reset,
    /// The host stopped the VM.
    Stopped,
    /// The VM was still running when its time limit passed.
    TimedOut {
        /// Where each vCPU was.
        vcpus: Vec<VcpuReport>,
    },
    /// The guest did something that ends a machine.
    Crashed(Box<Crash>),
    /// Ringlet or KVM failed; not the guest's doing as far as is known.
    Failed {
        /// What failed.
        error: String,
    },
}

impl Outcome {
    /// The exit status of `ringlet run`: the guest's code (255 if it is larger), 0 for a reset, 124 after a
    /// timeout, 125 if Ringlet failed, 134 if the guest crashed, 130 if the host stopped it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Exited { code } => u8::try_from(*code).unwrap_or(u8::MAX),
            Self::Reset => 0,
            Self::TimedOut { .. } => 124,
            Self::Failed { .. } => 125,
            Self::Stopped => 130,
            Self::Crashed(_) => 134,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "the guest exited with code {code}"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::Stopped => f.write_str("stopped by the host"),
            Self::TimedOut { vcpus } => {
                f.write_str("timed out")?;
                vcpus.iter().try_for_each(|vcpu| write!(f, "\n{vcpu}"))
            }
            Self::Crashed(crash) => write!(f, "the guest crashed: {crash}"),
            Self::Failed { error } => write!(f, "Ringlet failed: {error}"),
        }
    }
}

/// What a crashed guest did, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Crash {
    /// What happened.
    #[serde(flatten)]
    pub cause: CrashCause,
    /// The vCPU to which it happened, as it was then.
    pub vcpu: VcpuReport,
    /// The bytes at RIP in hexadecimal, up to 15 (the longest x86 instruction). Empty if they can't be read.
    pub instruction: String,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at RIP {:#x}", self.cause, self.vcpu.registers.rip)?;
        if !self.instruction.is_empty() {
            write!(f, " (instruction bytes {})", self.instruction)?;
        }
        write!(f, "\n{}", self.vcpu)
    }
}

/// What makes a guest's end a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CrashCause {
    /// `KVM_EXIT_SHUTDOWN`: an exception while delivering a double fault.
    TripleFault,
    /// `KVM_EXIT_INTERNAL_ERROR`: KVM cannot go on, most often because it cannot emulate an instruction.
    InternalError {
        /// KVM's suberror (`KVM_INTERNAL_ERROR_*`; 1 is emulation).
        suberror: u32,
        /// What the suberror means on this KVM backend.
        meaning: String,
        /// The data words that KVM added.
        data: Vec<u64>,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the processor refused the guest's state.
    FailEntry {
        /// The hardware's reason code.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// `KVM_EXIT_MEMORY_FAULT`, or `EFAULT` from `KVM_RUN`: an access that guest RAM cannot serve.
    MemoryFault {
        /// The guest-physical address, if KVM says.
        gpa: Option<u64>,
    },
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => f.write_str("triple fault"),
            Self::InternalError { suberror, meaning, .. } => {
                write!(f, "KVM internal error {suberror} ({meaning})")
            }
            Self::FailEntry { reason, cpu } => {
                write!(f, "the CPU refused to enter the guest (reason {reason:#x} on host CPU {cpu})")
            }
            Self::MemoryFault { gpa: Some(gpa) } => write!(f, "memory fault at guest address {gpa:#x}"),
            Self::MemoryFault { gpa: None } => f.write_str("memory fault"),
        }
    }
}

/// Where a vCPU was, and how it came there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VcpuReport {
    /// The vCPU's number, from 0.
    pub index: u32,
    /// Its registers.
    pub registers: Registers,
    /// Its last exits to the host, oldest first.
    pub last_exits: Vec<String>,
}

impl fmt::Display for VcpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}\n  last exits: ", self.index, self.registers)?;
        if self.last_exits.is_empty() {
            f.write_str("none")
        } else {
            f.write_str(&self.last_exits.join(", "))
        }
    }
}

/// The registers that tell what a vCPU was doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are the architecture's")]
pub struct Registers {
    pub rip: u64,
    pub rflags: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub cs: u16,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self;
        writeln!(f, "RIP={:#018x} CS={:#06x} RFLAGS={:#x}", r.rip, r.cs, r.rflags)?;
        writeln!(f, "  RAX={:#018x} RBX={:#018x} RCX={:#018x} RDX={:#018x}", r.rax, r.rbx, r.rcx, r.rdx)?;
        writeln!(f, "  RSI={:#018x} RDI={:#018x} RSP={:#018x} RBP={:#018x}", r.rsi, r.rdi, r.rsp, r.rbp)?;
        writeln!(f, "  R8 ={:#018x} R9 ={:#018x} R10={:#018x} R11={:#018x}", r.r8, r.r9, r.r10, r.r11)?;
        writeln!(f, "  R12={:#018x} R13={:#018x} R14={:#018x} R15={:#018x}", r.r12, r.r13, r.r14, r.r15)?;
        write!(f, "  CR0={:#x} CR2={:#x} CR3={:#x} CR4={:#x} EFER={:#x}", r.cr0, r.cr2, r.cr3, r.cr4, r.efer)
    }
}
