//! Metrics of Ringlet: what happened, counted cheaply and told to Prometheus when it asks.
//!
//! Owns: the metric families and the handles that the other crates count on, the rate-limited guest-error
//! log, and the HTTP exposition. Never: knows VMs, devices or KVM; it is the bottom of the dependency graph.
//!
//! * [`Registry`] hands out [`VmMetrics`], [`ShardMetrics`] and [`RuntimeMetrics`]. Counting on them is one
//!   relaxed atomic add. A VM's series live as long as its handle, those of its [`DeviceMetrics`] likewise.
//! * [`GuestLog`] and [`guest_error!`] count every mistake of a guest and print a bounded number of them.
//! * [`ThrottledTargets`] bounds the log lines of crates that log on guest input themselves.
//! * [`exposition`] serves `/metrics` over TCP or a Unix socket.
//!
//! ```
//! use ringlet_metrics::{ExitKind, GuestErrorKind, GuestLog, Registry, VmInfo, guest_error};
//!
//! let registry = Registry::new();
//! let vm = registry.register_vm(VmInfo { id: "vm-1".into(), ..VmInfo::default() });
//! vm.exits.inc(ExitKind::PioWrite);
//!
//! let log = GuestLog::new("vm-1", vm.clone());
//! guest_error!(log, GuestErrorKind::UnknownPort, "read of port {:#x}, width {}", 0x1234, 4);
//!
//! let text = registry.encode();
//! assert!(text.contains(r#"ringlet_vcpu_exits_total{vm="vm-1",kind="pio_write"} 1"#));
//! assert!(text.contains(r#"ringlet_guest_errors_total{vm="vm-1",kind="unknown_port"} 1"#));
//! ```

mod buffers;
mod collector;
mod counter;
mod descriptors;
mod device;
mod endpoint;
mod escape;
pub mod exposition;
mod families;
mod guest_log;
mod labels;
mod limiter;
mod registry;
mod table;
mod throttle;

pub use buffers::{BufferReading, BufferSource};
pub use counter::{
    BOOT_BOUNDS, Bounds, Counter, Counters, DELAY_BOUNDS, Gauge, Gauges, Histogram, HistogramSnapshot,
    Histograms, PerLabel,
};
pub use descriptors::{DescriptorReading, DescriptorSource};
pub use device::{DeviceMetrics, REQUEST_BOUNDS};
pub use endpoint::{BindError, Endpoint, EndpointError, Listener};
pub use escape::Escaped;
pub use families::{MAX_LABEL_BYTES, RuntimeMetrics, ShardMetrics, VmInfo, VmMetrics};
pub use guest_log::{GuestLog, MAX_MESSAGE_BYTES, Site, TARGET as GUEST_LOG_TARGET};
pub use labels::{
    BootPhase, ConnectionResult, DeviceKind, DropReason, ExitKind, GuestErrorKind, Label, OutcomeKind,
    RequestKind, RequestStatus, ResetReason, VmState,
};
pub use limiter::{LimiterReading, LimiterSource, LimiterTokens};
pub use registry::{Registry, RenderError};
pub use throttle::{Gcra, Rate, ThrottledTargets, Verdict};
