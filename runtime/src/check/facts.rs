//! What was seen on the host, as plain data and without judgement.

use crate::kvm::Virtualization;
use ringlet_io::UringUnavailable;

/// Why a device file could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OpenError {
    /// There is no such file, or no driver behind it.
    Absent,
    /// We may not.
    Denied,
    /// Anything else.
    Other(String),
}

/// Everything that is judged.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) cpu: Cpu,
    pub(super) kernel: String,
    pub(super) kvm: Kvm,
    /// What the event loop's own probe says.
    pub(super) io_uring: Result<(), UringUnavailable>,
    pub(super) limits: Limits,
    pub(super) memory: Memory,
    pub(super) cgroup: Cgroup,
    pub(super) tap: Tap,
    /// Where the program passt is.
    pub(super) passt: Option<String>,
    pub(super) landlock: Landlock,
    pub(super) seccomp: Seccomp,
    pub(super) identity: Identity,
}

/// From `/proc/cpuinfo`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cpu {
    /// The flag `vmx` or `svm`.
    pub(super) virtualization: Virtualization,
    /// The flag `hypervisor`: we are in a virtual machine ourselves.
    pub(super) hypervisor: bool,
}

/// What implements `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// Intel VT-x; whether it has extended page tables.
    Vmx { nested_paging: bool },
    /// AMD-V; whether it has nested page tables.
    Svm { nested_paging: bool },
    /// The pagetable-based virtual machine: without help of the processor.
    Pvm,
    /// No module that we know.
    Unknown,
}

/// The KVM device and what is behind it.
#[derive(Debug, Clone)]
pub(super) struct Kvm {
    pub(super) backend: Backend,
    pub(super) device: Result<KvmDevice, OpenError>,
}

/// What an opened `/dev/kvm` says.
#[derive(Debug, Clone)]
pub(super) struct KvmDevice {
    pub(super) api_version: i32,
    /// Each capability that we know and whether it is there.
    pub(super) capabilities: Vec<(Capability, bool)>,
    pub(super) max_vcpus: usize,
    pub(super) memory_slots: usize,
    /// Whether a VM with a split irqchip and a vCPU could be made, or which step failed and how.
    pub(super) trial: Result<(), String>,
}

/// A KVM capability and what Ringlet does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) name: &'static str,
    pub(super) required: bool,
    pub(super) used_for: &'static str,
}

/// A resource limit: `None` is unlimited.
pub(super) type Limit = Option<u64>;

/// Limits of the process and of the machine.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) open_files_soft: Limit,
    pub(super) open_files_hard: Limit,
    /// Bytes.
    pub(super) locked_memory: Limit,
    /// `RLIMIT_NPROC`: threads of the same user.
    pub(super) user_threads: Limit,
    /// Sysctl `kernel.threads-max`.
    pub(super) threads_max: Limit,
    /// Sysctl `kernel.pid_max`: a thread has a pid.
    pub(super) pid_max: Limit,
    /// The lowest `pids.max` of our cgroup and those above it.
    pub(super) cgroup_pids: Limit,
    /// Sysctl `vm.max_map_count`: mappings of one process.
    pub(super) mappings: Limit,
    /// Whether threads may have exact timers of CPU time, or why not.
    pub(super) cpu_timers: Result<(), String>,
}

/// From `/proc/meminfo`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    /// Bytes.
    pub(super) available: u64,
    pub(super) huge_pages: u64,
    pub(super) huge_pages_free: u64,
    /// Bytes.
    pub(super) huge_page_size: u64,
}

/// Which cgroup hierarchies are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CgroupVersion {
    None,
    V1,
    /// Version 1 controllers, and version 2 without them.
    Hybrid,
    V2,
}

/// Our place in the cgroup tree.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    pub(super) version: CgroupVersion,
    /// Our own version 2 group, as a path of the file system.
    pub(super) group: Option<String>,
    /// Controllers that the group may hand on.
    pub(super) controllers: Vec<String>,
    /// Whether we may make groups below it and move ourselves there.
    pub(super) delegated: bool,
}

/// `/dev/net/tun`.
#[derive(Debug, Clone)]
pub(super) struct Tap {
    pub(super) device: Result<(), OpenError>,
    /// Whether we have CAP_NET_ADMIN.
    pub(super) net_admin: bool,
}

/// Landlock in this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Landlock {
    /// Built in, but not enabled at boot.
    Disabled,
    /// The system call is not there.
    Absent,
    /// Version of its interface.
    Abi(i32),
}

/// Seccomp in this kernel and process.
#[derive(Debug, Clone, Default)]
pub(super) struct Seccomp {
    /// Sysctl `kernel.seccomp.actions_avail`; empty without filters.
    pub(super) actions: Vec<String>,
    /// Whether a filter is already in force for this process.
    pub(super) filtered: bool,
}

/// Who we are and what we could become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) no_new_privs: bool,
    pub(super) user_namespaces: UserNamespaces,
}

/// Whether an unprivileged process can make user name spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserNamespaces {
    Available,
    /// Not built into the kernel.
    Absent,
    /// `user.max_user_namespaces` is 0.
    Forbidden,
    /// `kernel.unprivileged_userns_clone` is 0.
    PrivilegedOnly,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1.
    AppArmor,
}
