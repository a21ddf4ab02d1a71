//! Ringlet: an asynchronous, unikernel-style microVM runtime for Linux/KVM.
//!
//! One process runs many small VMs; event-loop threads serve their devices. Embedding it takes three types:
//!
//! ```no_run
//! use ringlet::{Outcome, Resources, Runtime, RuntimeOptions, VmConfig};
//!
//! # async fn example() -> Result<(), ringlet::Error> {
//! let runtime = Runtime::new(RuntimeOptions::default())?;
//! let vm = runtime.launch(&VmConfig::new("hello").memory_mib(64), Resources::default())?;
//! assert_eq!(*vm.wait().await, Outcome::Exited { code: 0 });
//! # Ok(())
//! # }
//! ```

mod assembly;
mod buffers;
pub mod check;
mod cids;
mod config;
mod console;
mod cpu;
mod devices;
mod error;
pub mod images;
mod kvm;
mod lifecycle;
mod machine;
mod meter;
mod outcome;
mod pumps;
mod reaper;
mod runtime;
mod serial;
mod service;
mod tenants;
mod vcpu;
mod vm;
mod vsock;

pub use assembly::Resources;
pub use config::{
    AntiSpoof, BootProtocol, BootSource, Bucket, BufferLimits, CONSOLE_ID, CacheType, CpuLimits, CpuMax,
    DEFAULT_CPU_PERIOD_US, DEFAULT_QUEUE_SIZE, DiskLimits, Drive, DriveExtras, DriveIoEngine, ENTROPY_ID,
    Entropy, Extras, HugePages, ImageRef, LimitsConfig, MAX_CID, MAX_CONNECTIONS, MAX_CPU_PERIOD_US,
    MAX_CPU_QUOTA_US, MAX_CPU_WEIGHT, MAX_DEVICES, MAX_DRAIN_TIMEOUT_MS, MAX_DRIVE_ID, MAX_IFACE_ID,
    MAX_MEMORY_MIB, MAX_NAME, MAX_PUBLISHED, MAX_QUEUE_PAIRS, MAX_QUEUE_SIZE, MAX_QUEUES, MAX_SERIAL,
    MAX_UDS_PATH, MAX_VCPUS, MAX_VOLATILE_DISK, MAX_WEIGHT, MIN_BUFFERS_MAX, MIN_CID, MIN_CPU_PERIOD_US,
    MIN_MEMORY_MIB, MIN_NET_MTU, MIN_QUEUE_SIZE, MacAddress, MachineConfig, NetExtras, NetLimits, NetRates,
    NetworkInterface, Passt, Pinning, RateLimiter, TenantConfig, TenantLimits, VSOCK_ID, VmConfig, Volatile,
    Vsock, VsockExtras,
};
pub use console::{Console, ConsoleBuffer, ConsoleInput, LineConsole, StreamConsole};
pub use cpu::DEFAULT_CPU_WEIGHT;
pub use error::{Error, Result};
pub use outcome::{Crash, CrashCause, Outcome, Registers, VcpuReport};
pub use ringlet_boot::{BootError, Image, ImageError, Initrd};
pub use ringlet_devices::virtio::AssembleError;
pub use ringlet_devices::vsock::{ConnectError, ListenError as PortError};
pub use ringlet_io::disk::DiskError;
pub use ringlet_io::net::{PasstError, Publish, SocketError, TapError, Transport};
pub use ringlet_io::unix::ListenError;
pub use ringlet_io::{Engine, EngineChoice, EngineError, EngineKind, RamError, ShardError};
pub use ringlet_metrics::{Escaped, Registry, VmMetrics, VmState};
pub use runtime::{MAX_BUSY_POLL, MAX_SHARDS, Runtime, RuntimeOptions};
pub use serial::SerialInput;
pub use vm::Vm;
pub use vsock::{VsockListener, VsockStream};
