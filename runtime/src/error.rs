//! Why Ringlet could not do what was asked.

use std::io;

/// An error of the library. Every message says what was wrong, where, and what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `/dev/kvm` cannot be used.
    #[error("/dev/kvm cannot be used: {source}. `ringlet check` tells what is missing")]
    KvmUnavailable {
        /// What opening it said.
        source: io::Error,
    },
    /// The host's KVM lacks something that every VM needs.
    #[error("this host's KVM lacks {capability}, which Ringlet needs. `ringlet check` lists what it has")]
    MissingCapability {
        /// The capability, by its name in the KVM API.
        capability: &'static str,
    },
    /// A KVM operation failed.
    #[error("{step} failed: {source}")]
    Kvm {
        /// The step of VM assembly.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A value of the configuration is out of range.
    #[error("{field}: {reason}")]
    Config {
        /// The field, as the configuration names it.
        field: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A file of the configuration cannot be read or understood.
    #[error("{path}: {reason}")]
    ConfigFile {
        /// The file.
        path: String,
        /// What is wrong, and where in the file.
        reason: String,
    },
    /// The kernel image cannot be used.
    #[error(transparent)]
    Image(#[from] ringlet_boot::ImageError),
    /// A file that the configuration names cannot be used.
    #[error("{field}: {source}")]
    ImageFile {
        /// The field, as the configuration names it.
        field: &'static str,
        /// What is wrong with the file.
        source: ringlet_boot::ImageError,
    },
    /// The image cannot be loaded into this VM.
    #[error(transparent)]
    Boot(#[from] ringlet_boot::BootError),
    /// The file of a disk cannot be used.
    #[error(transparent)]
    Disk(#[from] ringlet_io::disk::DiskError),
    /// The tap of a network interface cannot be used.
    #[error(transparent)]
    Tap(#[from] ringlet_io::net::TapError),
    /// The socket of a network interface cannot be used.
    #[error(transparent)]
    Socket(#[from] ringlet_io::net::SocketError),
    /// The user-mode network of an interface does not start.
    #[error(transparent)]
    Passt(#[from] ringlet_io::net::PasstError),
    /// The Unix socket of a socket device cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ringlet_io::unix::ListenError),
    /// The guest cannot be connected to.
    #[error(transparent)]
    Connect(#[from] ringlet_devices::vsock::ConnectError),
    /// A port of the host cannot be listened at.
    #[error(transparent)]
    Port(#[from] ringlet_devices::vsock::ListenError),
    /// A virtio device cannot be put together.
    #[error(transparent)]
    Device(#[from] ringlet_devices::virtio::AssembleError),
    /// Guest RAM cannot be had.
    #[error(transparent)]
    Ram(#[from] ringlet_io::RamError),
    /// No event-loop engine can run here.
    #[error(transparent)]
    Engine(#[from] ringlet_io::EngineError),
    /// An event loop could not be started, or has failed.
    #[error(transparent)]
    Shard(#[from] ringlet_io::ShardError),
    /// The event loop of a new VM has stopped.
    #[error("the event loop that the VM was to live on has stopped")]
    ShardGone,
    /// A thread could not be started.
    #[error("cannot start a thread for {what}: {source}. Is the limit on threads reached (`ringlet check`)?")]
    Thread {
        /// What the thread was for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A host resource of the VM could not be made.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The VM is not in a state in which this can be done.
    #[error("the VM cannot {operation}: it {state}")]
    State {
        /// What was asked.
        operation: &'static str,
        /// The state it is in, as the end of a sentence.
        state: &'static str,
    },
}

impl Error {
    pub(crate) fn kvm(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { step, source: source.into() }
    }

    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { what, source: source.into() }
    }

    /// Of opening what the initrd's path names.
    pub fn initrd(source: ringlet_boot::ImageError) -> Self {
        Self::ImageFile { field: "initrd_path", source }
    }

    pub(crate) fn config(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { field, reason: reason.into() }
    }
}

/// A result of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;
