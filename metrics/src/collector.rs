//! The step from our numbers to Prometheus samples of the families in `table.rs`.
//!
//! This is the only file that builds `prometheus` protos, and it runs only
//! when somebody scrapes. Never: changes a number.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use crate::buffers::BufferReading;
use crate::counter::{Counter, HistogramSnapshot};
use crate::device::DeviceMetrics;
use crate::families::{ShardMetrics, VmMetrics};
use crate::labels::{DeviceKind, RequestKind, RequestStatus};
use crate::limiter::{LimiterReading, LimiterSource};
use crate::registry::State;
use crate::table::*;

const NANOS_PER_SECOND: f64 = 1e9;

/// The registry's collector.
pub(crate) struct Families {
    state: Arc<State>,
    descs: Vec<Desc>,
}

impl Families {
    pub(crate) fn new(state: Arc<State>) -> Result<Self, prometheus::Error> {
        let desc = |spec: &&Spec| {
            let labels = spec.labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(spec.name.to_owned(), spec.help.to_owned(), labels, HashMap::new())
        };
        Ok(Self { state, descs: ALL.iter().map(desc).collect::<Result<_, _>>()? })
    }

    fn runtime(&self) -> Vec<MetricFamily> {
        let runtime = &self.state.runtime;
        let phases = (runtime.boot_phase.iter())
            .map(|(phase, histogram)| BOOT_PHASE.histogram(&[phase.as_str()], &histogram.snapshot()));
        vec![
            BUILD_INFO.family(vec![BUILD_INFO.sample(&[env!("CARGO_PKG_VERSION")], 1.0)]),
            VMS.family(VMS.by_label(&[], runtime.vms.iter().map(|(k, n)| (k.as_str(), n.get() as f64)))),
            VMS_CREATED.family(vec![VMS_CREATED.sample(&[], runtime.created.get() as f64)]),
            VMS_ENDED.family(
                VMS_ENDED.by_label(&[], runtime.ended.iter().map(|(k, n)| (k.as_str(), n.get() as f64))),
            ),
            BOOT_PHASE.family(phases.collect()),
            REAPER_BACKLOG.family(vec![REAPER_BACKLOG.sample(&[], runtime.reaper_backlog.get() as f64)]),
        ]
    }

    fn shards(shards: &[Arc<ShardMetrics>]) -> Vec<MetricFamily> {
        let [mut busy, mut polling, mut delay, mut engine] = [const { Vec::new() }; 4];
        for shard in shards {
            let index = shard.index().to_string();
            busy.push(SHARD_BUSY.sample(&[&index], seconds(shard.busy_nanos.get())));
            polling.push(SHARD_POLLING.sample(&[&index], seconds(shard.polling_nanos.get())));
            delay.push(QUEUE_DELAY.histogram(&[&index], &shard.queue_delay.snapshot()));
            engine.push(IO_ENGINE.sample(&[&index, shard.engine()], 1.0));
        }
        vec![
            SHARD_BUSY.family(busy),
            SHARD_POLLING.family(polling),
            QUEUE_DELAY.family(delay),
            IO_ENGINE.family(engine),
        ]
    }

    fn vms(vms: &[Arc<VmMetrics>]) -> Vec<MetricFamily> {
        let each = |spec: &Spec, samples: fn(&Spec, &VmMetrics) -> Vec<Metric>| {
            spec.family(vms.iter().flat_map(|vm| samples(spec, vm)).collect())
        };
        vec![
            each(&VM_INFO, |spec, vm| {
                let labels = &vm.labels;
                vec![spec.sample(&[&labels.id, &labels.name, &labels.image, &labels.tenant], 1.0)]
            }),
            each(&VCPU_EXITS, |spec, vm| {
                spec.by_label(&[vm.id()], vm.exits.iter().map(|(k, n)| (k.as_str(), n.get() as f64)))
            }),
            each(&GUEST_ERRORS, |spec, vm| {
                spec.by_label(&[vm.id()], vm.guest_errors.iter().map(|(k, n)| (k.as_str(), n.get() as f64)))
            }),
            each(&VCPU_CPU, |spec, vm| {
                let sample =
                    |(vcpu, nanos): (u32, u64)| spec.sample(&[vm.id(), &vcpu.to_string()], seconds(nanos));
                vm.vcpu_cpu_nanos().into_iter().map(sample).collect()
            }),
            each(&SERIAL_SENT, |spec, vm| vec![spec.sample(&[vm.id()], vm.serial_sent_bytes.get() as f64)]),
            each(&SERIAL_RECEIVED, |spec, vm| {
                vec![spec.sample(&[vm.id()], vm.serial_received_bytes.get() as f64)]
            }),
            each(&SERIAL_DROPPED, |spec, vm| {
                vec![spec.sample(&[vm.id()], vm.serial_dropped_bytes.get() as f64)]
            }),
            each(&VM_BUSY, |spec, vm| vec![spec.sample(&[vm.id()], seconds(vm.shard_busy_nanos.get()))]),
            each(&CPU_PERIODS, |spec, vm| vec![spec.sample(&[vm.id()], vm.cpu_periods.get() as f64)]),
            each(&CPU_THROTTLED_PERIODS, |spec, vm| {
                vec![spec.sample(&[vm.id()], vm.cpu_throttled_periods.get() as f64)]
            }),
            each(&CPU_THROTTLED, |spec, vm| {
                vec![spec.sample(&[vm.id()], seconds(vm.cpu_throttled_nanos.get()))]
            }),
            each(&CPU_OVERRUN, |spec, vm| vec![spec.sample(&[vm.id()], seconds(vm.cpu_overrun_nanos.get()))]),
            each(&CPU_TIMER_EXITS, |spec, vm| vec![spec.sample(&[vm.id()], vm.cpu_timer_exits.get() as f64)]),
            each(&BUFFER, |spec, vm| buffer(spec, vm, |reading| reading.used)),
            each(&BUFFER_PEAK, |spec, vm| buffer(spec, vm, |reading| reading.peak)),
            each(&BUFFER_MAX, |spec, vm| buffer(spec, vm, |reading| reading.max)),
            each(&BUFFER_HELD_BACK, |spec, vm| buffer(spec, vm, |reading| reading.held_back)),
            each(&VM_DESCRIPTORS, |spec, vm| {
                let taken = vm.descriptors();
                taken.iter().map(|reading| spec.sample(&[vm.id()], reading.used as f64)).collect()
            }),
        ]
    }

    fn devices(vms: &[Arc<VmMetrics>]) -> Vec<MetricFamily> {
        let devices: Vec<_> = (vms.iter())
            .flat_map(|vm| vm.live_devices().into_iter().map(move |device| (vm.id(), device)))
            .collect();
        let each = |spec: &Spec, samples: fn(&Spec, &str, &DeviceMetrics) -> Vec<Metric>| {
            spec.family(devices.iter().flat_map(|(vm, device)| samples(spec, vm, device)).collect())
        };
        vec![
            each(&DEVICE_INFO, |spec, vm, device| {
                vec![spec.sample(&[vm, device.id(), device.kind().as_str()], 1.0)]
            }),
            each(&DEVICE_REQUESTS, device_requests),
            each(&DEVICE_BYTES, |spec, vm, device| {
                let moved = device.kinds().filter(|kind| kind.moves_data());
                spec.by_label(
                    &[vm, device.id()],
                    moved.map(|kind| (kind.as_str(), device.bytes(kind) as f64)),
                )
            }),
            each(&DEVICE_LATENCY, device_latency),
            each(&DEVICE_IN_FLIGHT, |spec, vm, device| {
                spec.of_device(vm, device, device.in_flight.get() as f64)
            }),
            each(&DEVICE_NOTIFICATIONS, |spec, vm, device| spec.count(vm, device, &device.notifications)),
            each(&DEVICE_STRAY, |spec, vm, device| spec.count(vm, device, &device.stray_notifications)),
            each(&DEVICE_INTERRUPTS, |spec, vm, device| spec.count(vm, device, &device.interrupts)),
            each(&DEVICE_SUPPRESSED, |spec, vm, device| {
                spec.count(vm, device, &device.interrupts_suppressed)
            }),
            each(&DEVICE_BOUNCES, |spec, vm, device| match device.kind() {
                DeviceKind::Block => spec.count(vm, device, &device.bounce_copies),
                _ => Vec::new(),
            }),
            each(&DEVICE_DROPPED, |spec, vm, device| match device.kind() {
                DeviceKind::Console => spec.count(vm, device, &device.dropped_bytes),
                _ => Vec::new(),
            }),
            each(&DEVICE_DROPPED_PACKETS, |spec, vm, device| match device.kind() {
                DeviceKind::Net => {
                    let counts = device.dropped_packets.iter();
                    spec.by_label(&[vm, device.id()], counts.map(|(k, n)| (k.as_str(), n.get() as f64)))
                }
                _ => Vec::new(),
            }),
            each(&DEVICE_CONNECTIONS, |spec, vm, device| match device.kind() {
                DeviceKind::Vsock => spec.of_device(vm, device, device.connections.get() as f64),
                _ => Vec::new(),
            }),
            each(&DEVICE_CONNECTION_RESULTS, |spec, vm, device| match device.kind() {
                DeviceKind::Vsock => {
                    let counts = device.connection_results.iter();
                    spec.by_label(&[vm, device.id()], counts.map(|(k, n)| (k.as_str(), n.get() as f64)))
                }
                _ => Vec::new(),
            }),
            each(&DEVICE_CONNECTION_RESETS, |spec, vm, device| match device.kind() {
                DeviceKind::Vsock => {
                    let counts = device.connection_resets.iter();
                    spec.by_label(&[vm, device.id()], counts.map(|(k, n)| (k.as_str(), n.get() as f64)))
                }
                _ => Vec::new(),
            }),
            each(&DEVICE_RESETS, |spec, vm, device| spec.count(vm, device, &device.queue_resets)),
            each(&DEVICE_BROKEN, |spec, vm, device| spec.count(vm, device, &device.broken_queues)),
        ]
    }
}

/// The levels of limits of all VMs.
fn limiters(vms: &[Arc<VmMetrics>]) -> Vec<MetricFamily> {
    let read = |vm: &Arc<VmMetrics>| {
        let id = vm.id().to_owned();
        // Most levels limit nothing, and never did.
        let used = vm.limiters().into_iter().filter(|(_, reading)| *reading != LimiterReading::default());
        used.map(move |(name, reading)| (vec![id.clone(), name], reading))
    };
    let readings: Vec<_> = vms.iter().flat_map(read).collect();
    LIMITER_FAMILIES.of(&readings)
}

/// The levels of limits of all tenants.
fn tenants(state: &State) -> Vec<MetricFamily> {
    let read = |(name, limiter, source): (Box<str>, &'static str, Arc<dyn LimiterSource>)| {
        (vec![name.to_string(), limiter.to_owned()], source.read())
    };
    let readings: Vec<_> = state.live_tenants().into_iter().map(read).collect();
    TENANT_FAMILIES.of(&readings)
}

/// The level of limits of the host.
fn host(state: &State) -> Vec<MetricFamily> {
    let readings: Vec<_> = state.live_host().iter().map(|source| (Vec::new(), source.read())).collect();
    HOST_FAMILIES.of(&readings)
}

/// The descriptors that the connections of all VMs share.
fn descriptors(state: &State) -> Vec<MetricFamily> {
    let reading = state.live_descriptors().map(|source| source.read());
    let used = reading.iter().map(|reading| DESCRIPTORS.sample(&[], reading.used as f64));
    let max = reading.iter().filter_map(|reading| reading.max);
    let max = max.map(|max| DESCRIPTORS_MAX.sample(&[], max as f64));
    vec![DESCRIPTORS.family(used.collect()), DESCRIPTORS_MAX.family(max.collect())]
}

/// The families of one sort of level.
struct LimiterFamilies {
    operations: Spec,
    bytes: Spec,
    throttled: Spec,
    throttled_time: Spec,
    waiting: Spec,
    tokens: Spec,
}

const LIMITER_FAMILIES: LimiterFamilies = LimiterFamilies {
    operations: LIMITER_OPERATIONS,
    bytes: LIMITER_BYTES,
    throttled: LIMITER_THROTTLED,
    throttled_time: LIMITER_THROTTLED_TIME,
    waiting: LIMITER_WAITING,
    tokens: LIMITER_TOKENS,
};

const TENANT_FAMILIES: LimiterFamilies = LimiterFamilies {
    operations: TENANT_OPERATIONS,
    bytes: TENANT_BYTES,
    throttled: TENANT_THROTTLED,
    throttled_time: TENANT_THROTTLED_TIME,
    waiting: TENANT_WAITING,
    tokens: TENANT_TOKENS,
};

const HOST_FAMILIES: LimiterFamilies = LimiterFamilies {
    operations: HOST_OPERATIONS,
    bytes: HOST_BYTES,
    throttled: HOST_THROTTLED,
    throttled_time: HOST_THROTTLED_TIME,
    waiting: HOST_WAITING,
    tokens: HOST_TOKENS,
};

impl LimiterFamilies {
    /// Of levels, each with its labels.
    fn of(&self, readings: &[(Vec<String>, LimiterReading)]) -> Vec<MetricFamily> {
        let each = |spec: &Spec, value: fn(&LimiterReading) -> f64| {
            let sample = |(labels, reading): &(Vec<String>, LimiterReading)| {
                spec.sample(&as_strs(labels), value(reading))
            };
            spec.family(readings.iter().map(sample).collect())
        };
        let tokens = readings.iter().flat_map(|(labels, reading)| {
            let left = reading.tokens.iter().map(|tokens| (tokens.meter, tokens.left as f64));
            self.tokens.by_label(&as_strs(labels), left)
        });
        vec![
            each(&self.operations, |reading| reading.operations as f64),
            each(&self.bytes, |reading| reading.bytes as f64),
            each(&self.throttled, |reading| reading.throttled as f64),
            each(&self.throttled_time, |reading| seconds(reading.throttled_nanos)),
            each(&self.waiting, |reading| reading.waiting as f64),
            self.tokens.family(tokens.collect()),
        ]
    }
}

fn as_strs(labels: &[String]) -> Vec<&str> {
    labels.iter().map(String::as_str).collect()
}

/// One number of what the host buffers for a VM, if that is counted.
fn buffer(spec: &Spec, vm: &VmMetrics, value: fn(&BufferReading) -> u64) -> Vec<Metric> {
    vm.buffers().iter().map(|reading| spec.sample(&[vm.id()], value(reading) as f64)).collect()
}

fn device_requests(spec: &Spec, vm: &str, device: &DeviceMetrics) -> Vec<Metric> {
    let of_kind = |kind: RequestKind| {
        let counts = RequestStatus::ALL.iter().map(move |status| (*status, device.requests(kind, *status)));
        spec.by_label(
            &[vm, device.id(), kind.as_str()],
            counts.map(|(status, n)| (status.as_str(), n as f64)),
        )
    };
    device.kinds().flat_map(of_kind).collect()
}

fn device_latency(spec: &Spec, vm: &str, device: &DeviceMetrics) -> Vec<Metric> {
    let timed = device.kinds().filter(|kind| kind.takes_time());
    let times = timed.filter_map(|kind| Some((kind, device.latency(kind)?)));
    times.map(|(kind, times)| spec.histogram(&[vm, device.id(), kind.as_str()], &times)).collect()
}

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.runtime();
        families.extend(Self::shards(&self.state.live_shards()));
        let vms = self.state.live_vms();
        families.extend(Self::vms(&vms));
        families.extend(Self::devices(&vms));
        families.extend(limiters(&vms));
        families.extend(tenants(&self.state));
        families.extend(host(&self.state));
        families.extend(descriptors(&self.state));
        families
    }
}

impl Spec {
    fn family(&self, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(metrics);
        family
    }

    /// One sample; `values` are in the order of the family's labels.
    fn sample(&self, values: &[&str], value: f64) -> Metric {
        let mut metric = self.labelled(values);
        match self.kind {
            MetricType::COUNTER => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            _ => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        metric
    }

    /// One sample for each value of the family's last label; `first` are the labels before it.
    fn by_label<'a>(&self, first: &[&str], cells: impl Iterator<Item = (&'a str, f64)>) -> Vec<Metric> {
        cells.map(|(key, value)| self.sample(&[first, &[key]].concat(), value)).collect()
    }

    /// The sample of a family whose labels are [`DEVICE`].
    fn of_device(&self, vm: &str, device: &DeviceMetrics, value: f64) -> Vec<Metric> {
        vec![self.sample(&[vm, device.id()], value)]
    }

    fn count(&self, vm: &str, device: &DeviceMetrics, counter: &Counter) -> Vec<Metric> {
        self.of_device(vm, device, counter.get() as f64)
    }

    fn histogram(&self, values: &[&str], snapshot: &HistogramSnapshot) -> Metric {
        let bucket = |(bound, count): &(u64, u64)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(seconds(*bound));
            bucket.set_cumulative_count(*count);
            bucket
        };
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(snapshot.buckets.iter().map(bucket).collect());
        histogram.set_sample_count(snapshot.count);
        histogram.set_sample_sum(seconds(snapshot.sum_nanos));
        let mut metric = self.labelled(values);
        metric.set_histogram(histogram);
        metric
    }

    fn labelled(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(self.labels.len(), values.len(), "{}", self.name);
        let pair = |(name, value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        Metric::from_label(self.labels.iter().zip(values).map(pair).collect())
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / NANOS_PER_SECOND
}
