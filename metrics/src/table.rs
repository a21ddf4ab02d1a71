//! The table of metric families: their names, labels and help texts.

use prometheus::proto::MetricType;

/// A family as exposed: `(name, help, labels)`.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) labels: &'static [&'static str],
    pub(crate) kind: MetricType,
}

const fn spec(
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
) -> Spec {
    Spec { name, help, labels, kind }
}

use MetricType::{COUNTER, GAUGE, HISTOGRAM};

pub(crate) const BUILD_INFO: Spec =
    spec("ringlet_build_info", GAUGE, &["version"], "Version of Ringlet; always 1.");
pub(crate) const VMS: Spec = spec("ringlet_vms", GAUGE, &["state"], "Live VMs by state.");
pub(crate) const VMS_CREATED: Spec = spec("ringlet_vms_created_total", COUNTER, &[], "VMs created.");
pub(crate) const VMS_ENDED: Spec =
    spec("ringlet_vms_ended_total", COUNTER, &["outcome"], "VMs ended, by outcome.");
pub(crate) const BOOT_PHASE: Spec = spec(
    "ringlet_boot_phase_seconds",
    HISTOGRAM,
    &["phase"],
    "Duration of each phase of a VM's start: load and create by themselves, first_exit and ready since start.",
);
pub(crate) const REAPER_BACKLOG: Spec =
    spec("ringlet_reaper_backlog", GAUGE, &[], "Ended VMs whose descriptors are yet to be closed.");
pub(crate) const VM_INFO: Spec = spec(
    "ringlet_vm_info",
    GAUGE,
    &["vm", "name", "image", "tenant"],
    "What a VM is, to be joined on the label vm; always 1.",
);
pub(crate) const VCPU_EXITS: Spec =
    spec("ringlet_vcpu_exits_total", COUNTER, &["vm", "kind"], "Exits from guest to host, by kind.");
pub(crate) const VCPU_CPU: Spec = spec(
    "ringlet_vcpu_cpu_seconds_total",
    COUNTER,
    &["vm", "vcpu"],
    "CPU time of the thread that runs a vCPU, in guest and host.",
);
pub(crate) const GUEST_ERRORS: Spec =
    spec("ringlet_guest_errors_total", COUNTER, &["vm", "kind"], "Invalid accesses by a guest, by kind.");
pub(crate) const SERIAL_SENT: Spec = spec(
    "ringlet_serial_sent_bytes_total",
    COUNTER,
    &["vm"],
    "Bytes that a guest wrote to its serial port and that were handed on.",
);
pub(crate) const SERIAL_RECEIVED: Spec = spec(
    "ringlet_serial_received_bytes_total",
    COUNTER,
    &["vm"],
    "Bytes that a guest read from its serial port.",
);
pub(crate) const SERIAL_DROPPED: Spec = spec(
    "ringlet_serial_dropped_bytes_total",
    COUNTER,
    &["vm"],
    "Serial bytes lost because their reader was too slow.",
);
pub(crate) const VM_BUSY: Spec = spec(
    "ringlet_vm_event_loop_busy_seconds_total",
    COUNTER,
    &["vm"],
    "Event-loop time spent on the devices of a VM.",
);
pub(crate) const CPU_PERIODS: Spec = spec(
    "ringlet_vm_cpu_periods_total",
    COUNTER,
    &["vm"],
    "Periods of the CPU limit that have passed, but those without use (nr_periods of cgroup v2).",
);
pub(crate) const CPU_THROTTLED_PERIODS: Spec = spec(
    "ringlet_vm_cpu_throttled_periods_total",
    COUNTER,
    &["vm"],
    "Periods in which the VM had used up its CPU limit (nr_throttled of cgroup v2).",
);
pub(crate) const CPU_THROTTLED: Spec = spec(
    "ringlet_vm_cpu_throttled_seconds_total",
    COUNTER,
    &["vm"],
    "Time for which the VM was kept from running by its CPU limit (throttled_usec of cgroup v2).",
);
pub(crate) const CPU_TIMER_EXITS: Spec = spec(
    "ringlet_vm_cpu_timer_exits_total",
    COUNTER,
    &["vm"],
    "Exits of vCPUs by exact timers of CPU time (perf_event_open), which fire while the guest runs, not while it is halted.",
);
pub(crate) const CPU_OVERRUN: Spec = spec(
    "ringlet_vm_cpu_overrun_seconds_total",
    COUNTER,
    &["vm"],
    "CPU time used beyond the limit of a period, and taken off those after it.",
);
pub(crate) const BUFFER: Spec = spec(
    "ringlet_vm_buffer_bytes",
    GAUGE,
    &["vm"],
    "Memory that the host holds as buffers for a VM, or keeps for them (memory.current of cgroup v2, of buffers alone).",
);
pub(crate) const BUFFER_PEAK: Spec = spec(
    "ringlet_vm_buffer_peak_bytes",
    GAUGE,
    &["vm"],
    "Most memory that the host has ever held as buffers for a VM (memory.peak of cgroup v2).",
);
pub(crate) const BUFFER_MAX: Spec = spec(
    "ringlet_vm_buffer_max_bytes",
    GAUGE,
    &["vm"],
    "Most memory that a VM can make the host hold as buffers (memory.max of cgroup v2).",
);
pub(crate) const BUFFER_HELD_BACK: Spec = spec(
    "ringlet_vm_buffer_held_back_total",
    COUNTER,
    &["vm"],
    "Requests and copies that waited because there was no memory left for them (max in memory.events of cgroup v2).",
);
pub(crate) const VM_DESCRIPTORS: Spec = spec(
    "ringlet_vm_connection_descriptors",
    GAUGE,
    &["vm"],
    "Descriptors that the connections of a VM's socket device have, those that are its own included.",
);
pub(crate) const DESCRIPTORS: Spec = spec(
    "ringlet_connection_descriptors",
    GAUGE,
    &[],
    "Descriptors that the connections of all VMs' socket devices have out of the pool that they share.",
);
pub(crate) const DESCRIPTORS_MAX: Spec = spec(
    "ringlet_connection_descriptors_max",
    GAUGE,
    &[],
    "Descriptors of the pool that the connections of all VMs' socket devices share.",
);
pub(crate) const SHARD_BUSY: Spec = spec(
    "ringlet_event_loop_busy_seconds_total",
    COUNTER,
    &["shard"],
    "Time that an event loop worked rather than waited.",
);
pub(crate) const SHARD_POLLING: Spec = spec(
    "ringlet_event_loop_polling_seconds_total",
    COUNTER,
    &["shard"],
    "Time that an event loop looked for work instead of sleeping.",
);
pub(crate) const QUEUE_DELAY: Spec = spec(
    "ringlet_event_loop_queue_delay_seconds",
    HISTOGRAM,
    &["shard"],
    "Time that work was ready and waited for its event loop.",
);
pub(crate) const IO_ENGINE: Spec =
    spec("ringlet_io_engine_info", GAUGE, &["shard", "engine"], "I/O engine of an event loop; always 1.");
pub(crate) const DEVICE_INFO: Spec = spec(
    "ringlet_device_info",
    GAUGE,
    &["vm", "device", "kind"],
    "What a device is, to be joined on the labels vm and device; always 1.",
);
pub(crate) const DEVICE_REQUESTS: Spec = spec(
    "ringlet_device_requests_total",
    COUNTER,
    &["vm", "device", "kind", "status"],
    "Requests that a device completed, by kind and status.",
);
pub(crate) const DEVICE_BYTES: Spec = spec(
    "ringlet_device_bytes_total",
    COUNTER,
    &["vm", "device", "kind"],
    "Bytes moved by the requests of a device, by kind.",
);
pub(crate) const DEVICE_LATENCY: Spec = spec(
    "ringlet_device_request_seconds",
    HISTOGRAM,
    &["vm", "device", "kind"],
    "Time from a request's leaving its queue to its completion, by kind.",
);
pub(crate) const DEVICE_IN_FLIGHT: Spec = spec(
    "ringlet_device_in_flight_requests",
    GAUGE,
    DEVICE,
    "Requests taken from a queue and not completed yet.",
);
pub(crate) const DEVICE_NOTIFICATIONS: Spec = spec(
    "ringlet_device_notifications_total",
    COUNTER,
    DEVICE,
    "Notifications by the driver that reached a queue.",
);
pub(crate) const DEVICE_STRAY: Spec = spec(
    "ringlet_device_stray_notifications_total",
    COUNTER,
    DEVICE,
    "Notifications for a queue that does not exist or is not ready.",
);
pub(crate) const DEVICE_INTERRUPTS: Spec =
    spec("ringlet_device_interrupts_total", COUNTER, DEVICE, "Interrupts sent to the driver.");
pub(crate) const DEVICE_SUPPRESSED: Spec = spec(
    "ringlet_device_interrupts_suppressed_total",
    COUNTER,
    DEVICE,
    "Interrupts that were due and that the driver had asked not to get.",
);
pub(crate) const DEVICE_BOUNCES: Spec = spec(
    "ringlet_device_bounce_copies_total",
    COUNTER,
    DEVICE,
    "Requests whose data was copied through a buffer of the host, because alignment forced it.",
);
pub(crate) const DEVICE_DROPPED: Spec = spec(
    "ringlet_device_dropped_bytes_total",
    COUNTER,
    DEVICE,
    "Console bytes lost because their reader was too slow.",
);
pub(crate) const DEVICE_DROPPED_PACKETS: Spec = spec(
    "ringlet_device_dropped_packets_total",
    COUNTER,
    &["vm", "device", "reason"],
    "Packets of a network interface that got no further, by reason.",
);
pub(crate) const DEVICE_CONNECTIONS: Spec = spec(
    "ringlet_device_connections",
    GAUGE,
    DEVICE,
    "Connections of a socket device, those that are being made or ended included.",
);
pub(crate) const DEVICE_CONNECTION_RESULTS: Spec = spec(
    "ringlet_device_connections_total",
    COUNTER,
    &["vm", "device", "result"],
    "Connections that a socket device was asked for, by what became of them.",
);
pub(crate) const DEVICE_CONNECTION_RESETS: Spec = spec(
    "ringlet_device_connection_resets_total",
    COUNTER,
    &["vm", "device", "reason"],
    "Connections of a socket device that were broken off, and packets of none that were answered so, by reason.",
);
pub(crate) const DEVICE_RESETS: Spec = spec(
    "ringlet_device_queue_resets_total",
    COUNTER,
    DEVICE,
    "Queues stopped at the driver's request, by a reset of the queue or of the device.",
);
pub(crate) const DEVICE_BROKEN: Spec = spec(
    "ringlet_device_broken_queues_total",
    COUNTER,
    DEVICE,
    "Queues that stopped for good because of what the driver wrote into them.",
);

pub(crate) const LIMITER_OPERATIONS: Spec = spec(
    "ringlet_limiter_operations_total",
    COUNTER,
    LIMITER,
    "Requests that a level of limits has admitted.",
);
pub(crate) const LIMITER_BYTES: Spec = spec(
    "ringlet_limiter_bytes_total",
    COUNTER,
    LIMITER,
    "Bytes of the requests that a level of limits has admitted.",
);
pub(crate) const LIMITER_THROTTLED: Spec = spec(
    "ringlet_limiter_throttled_operations_total",
    COUNTER,
    LIMITER,
    "Requests that had to wait at a level of limits.",
);
pub(crate) const LIMITER_THROTTLED_TIME: Spec = spec(
    "ringlet_limiter_throttled_seconds_total",
    COUNTER,
    LIMITER,
    "Time that requests waited at a level of limits, one after the other or side by side.",
);
pub(crate) const LIMITER_WAITING: Spec =
    spec("ringlet_limiter_waiting_operations", GAUGE, LIMITER, "Requests that wait at a level of limits.");
pub(crate) const LIMITER_TOKENS: Spec = spec(
    "ringlet_limiter_tokens",
    GAUGE,
    &["vm", "limiter", "meter"],
    "Tokens that a token bucket has left; less than 0 if they are owed.",
);

pub(crate) const TENANT_OPERATIONS: Spec = spec(
    "ringlet_tenant_operations_total",
    COUNTER,
    TENANT,
    "Requests of a tenant's VMs that its limits have admitted.",
);
pub(crate) const TENANT_BYTES: Spec = spec(
    "ringlet_tenant_bytes_total",
    COUNTER,
    TENANT,
    "Bytes of the requests of a tenant's VMs that its limits have admitted.",
);
pub(crate) const TENANT_THROTTLED: Spec = spec(
    "ringlet_tenant_throttled_operations_total",
    COUNTER,
    TENANT,
    "Requests of a tenant's VMs that had to wait for its limits, or for the host's.",
);
pub(crate) const TENANT_THROTTLED_TIME: Spec = spec(
    "ringlet_tenant_throttled_seconds_total",
    COUNTER,
    TENANT,
    "Time that VMs of a tenant waited for its limits, or for the host's.",
);
pub(crate) const TENANT_WAITING: Spec = spec(
    "ringlet_tenant_waiting_operations",
    GAUGE,
    TENANT,
    "VMs of a tenant that wait for its limits, reads and other requests counted apart.",
);
pub(crate) const TENANT_TOKENS: Spec = spec(
    "ringlet_tenant_tokens",
    GAUGE,
    &["tenant", "limiter", "meter"],
    "Tokens that a token bucket of a tenant has left; less than 0 if they are owed.",
);

pub(crate) const HOST_OPERATIONS: Spec = spec(
    "ringlet_host_limit_operations_total",
    COUNTER,
    &[],
    "Requests of VMs that the limits of the host have admitted.",
);
pub(crate) const HOST_BYTES: Spec = spec(
    "ringlet_host_limit_bytes_total",
    COUNTER,
    &[],
    "Bytes of the requests of VMs that the limits of the host have admitted.",
);
pub(crate) const HOST_THROTTLED: Spec = spec(
    "ringlet_host_limit_throttled_operations_total",
    COUNTER,
    &[],
    "Requests of VMs without a tenant that had to wait for the limits of the host.",
);
pub(crate) const HOST_THROTTLED_TIME: Spec = spec(
    "ringlet_host_limit_throttled_seconds_total",
    COUNTER,
    &[],
    "Time that VMs without a tenant waited for the limits of the host.",
);
pub(crate) const HOST_WAITING: Spec = spec(
    "ringlet_host_limit_waiting_operations",
    GAUGE,
    &[],
    "VMs without a tenant that wait for the limits of the host, reads and other requests counted apart.",
);
pub(crate) const HOST_TOKENS: Spec = spec(
    "ringlet_host_limit_tokens",
    GAUGE,
    &["meter"],
    "Tokens that a token bucket of the host has left; less than 0 if they are owed.",
);

/// Labels of the families with one sample for each of a tenant's levels.
const TENANT: &[&str] = &["tenant", "limiter"];
/// Labels of the families with one sample a level of limits.
const LIMITER: &[&str] = &["vm", "limiter"];
/// Labels of the families with one sample a device.
pub(crate) const DEVICE: &[&str] = &["vm", "device"];

pub(crate) const ALL: [&Spec; 65] = [
    &BUILD_INFO,
    &VMS,
    &VMS_CREATED,
    &VMS_ENDED,
    &BOOT_PHASE,
    &REAPER_BACKLOG,
    &VM_INFO,
    &VCPU_EXITS,
    &VCPU_CPU,
    &GUEST_ERRORS,
    &SERIAL_SENT,
    &SERIAL_RECEIVED,
    &SERIAL_DROPPED,
    &VM_BUSY,
    &CPU_PERIODS,
    &CPU_THROTTLED_PERIODS,
    &CPU_THROTTLED,
    &CPU_OVERRUN,
    &CPU_TIMER_EXITS,
    &BUFFER,
    &BUFFER_PEAK,
    &BUFFER_MAX,
    &BUFFER_HELD_BACK,
    &VM_DESCRIPTORS,
    &DESCRIPTORS,
    &DESCRIPTORS_MAX,
    &SHARD_BUSY,
    &SHARD_POLLING,
    &QUEUE_DELAY,
    &IO_ENGINE,
    &DEVICE_INFO,
    &DEVICE_REQUESTS,
    &DEVICE_BYTES,
    &DEVICE_LATENCY,
    &DEVICE_IN_FLIGHT,
    &DEVICE_NOTIFICATIONS,
    &DEVICE_STRAY,
    &DEVICE_INTERRUPTS,
    &DEVICE_SUPPRESSED,
    &DEVICE_BOUNCES,
    &DEVICE_DROPPED,
    &DEVICE_DROPPED_PACKETS,
    &DEVICE_CONNECTIONS,
    &DEVICE_CONNECTION_RESULTS,
    &DEVICE_CONNECTION_RESETS,
    &DEVICE_RESETS,
    &DEVICE_BROKEN,
    &LIMITER_OPERATIONS,
    &LIMITER_BYTES,
    &LIMITER_THROTTLED,
    &LIMITER_THROTTLED_TIME,
    &LIMITER_WAITING,
    &LIMITER_TOKENS,
    &TENANT_OPERATIONS,
    &TENANT_BYTES,
    &TENANT_THROTTLED,
    &TENANT_THROTTLED_TIME,
    &TENANT_WAITING,
    &TENANT_TOKENS,
    &HOST_OPERATIONS,
    &HOST_BYTES,
    &HOST_THROTTLED,
    &HOST_THROTTLED_TIME,
    &HOST_WAITING,
    &HOST_TOKENS,
];
