//! What several targets share: the devices that they drive, on rigs that outlast an input, since a shard takes far
//! longer to make than most inputs take to run.
//!
//! Owns no check. An input starts with a new device and with guest memory that is all zeroes.

mod net;
mod sockets;

pub use net::Network;
pub use sockets::{PORT, Process};

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use ringlet_devices::block::{BlockDevice, BlockOptions, Cache, Serial};
use ringlet_devices::console::{
    Console, ConsoleOutput, ConsoleParts, ConsoleSize, PipeReader, PipeWriter, pipe,
};
use ringlet_devices::rng::Rng;
use ringlet_devices::testing::{Buffer, EngineKind, Options, PATIENCE, Rig, Subject};
use ringlet_devices::virtio::{ConfigSpace, DeviceState, VirtioState};
use ringlet_devices::vsock::{VsockDevice, VsockHandle, VsockOptions, VsockSource};
use ringlet_io::GuestRam;
use ringlet_io::disk::DiskSource;
use ringlet_metrics::{DeviceKind, DeviceMetrics, Registry, VmInfo};

/// Every random byte of the entropy device, and every byte that is typed at a console.
pub const FILLER: u8 = 0xA5;
/// Size in bytes of the disk.
pub const DISK: u64 = 64 << 10;
/// Context ID of the guest of a socket device.
pub const CID: u64 = 3;
/// Size in bytes of the pipes of a console.
pub const PIPE: usize = 256;

/// The bit of the interrupt status that tells of a change of the configuration (virtio 1.2, section 4.2.2).
const CONFIG_CHANGED: u8 = 2;

/// A device under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A block device with two queues on a disk in memory.
    Block,
    /// An entropy device.
    Entropy,
    /// A console between two pipes.
    Console,
    /// A network interface with two pairs of queues.
    Net,
    /// A socket device.
    Vsock,
}

/// Who is at the host's side of a device.
#[derive(Debug)]
pub enum Side {
    /// Nobody that does anything.
    Nobody,
    /// Who sits at a console.
    Console(Ends),
    /// Who sends packets to an interface.
    Network(Network),
    /// A process that connects to the guest, and listens.
    Process(Process),
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Block, Self::Entropy, Self::Console, Self::Net, Self::Vsock];

    /// One of them, by a number.
    pub fn pick(number: u8) -> Self {
        Self::ALL[usize::from(number) % Self::ALL.len()]
    }

    /// The device, new, and its host's side.
    pub fn make(self) -> (Subject, Side) {
        match self {
            Self::Block => (block(), Side::Nobody),
            Self::Entropy => (entropy(), Side::Nobody),
            Self::Console => {
                let (subject, ends) = console(PIPE);
                (subject, Side::Console(ends))
            }
            Self::Net => {
                let (subject, network) = net::net();
                (subject, Side::Network(network))
            }
            Self::Vsock => {
                let (subject, handle) = vsock();
                (subject, Side::Process(Process::new(handle)))
            }
        }
    }
}

impl Side {
    /// Does what somebody there does, with so many bytes: takes what came, and sends something.
    pub fn act(&mut self, len: u8) {
        match self {
            Self::Nobody => {}
            Self::Console(Ends { typing, reading }) => {
                reading.take(&mut Vec::new());
                // After a stop, nobody reads.
                let _ = typing.try_write(&vec![FILLER; len.into()]);
            }
            Self::Network(network) => network.send(len),
            Self::Process(process) => process.act(len),
        }
    }
}

/// The host's ends of a console.
#[derive(Debug)]
pub struct Ends {
    /// What the guest reads.
    pub typing: PipeWriter,
    /// What the guest prints.
    pub reading: PipeReader,
}

/// The rig that was left by the last input that had this kind of device; puts `subject` on it.
pub fn rig(device: Device, subject: Subject, restored: Option<VirtioState>) -> Rig {
    let rig = match left(device).lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(rig) => rig.replace(subject, restored),
        None if restored.is_some() => {
            Rig::new(device.make().0, Options::new(EngineKind::Epoll)).replace(subject, restored)
        }
        None => Rig::new(subject, Options::new(EngineKind::Epoll)),
    };
    clear(&rig.ram);
    rig
}

/// Keeps a rig for the next input.
pub fn leave(device: Device, rig: Rig) {
    *left(device).lock().unwrap_or_else(PoisonError::into_inner) = Some(rig);
}

/// Looks at the rig that was left, which there must be.
pub fn with_left<T>(device: Device, look: impl FnOnce(&Rig) -> T) -> T {
    let left = left(device).lock().unwrap_or_else(PoisonError::into_inner);
    look(left.as_ref().expect("a rig was left"))
}

fn left(device: Device) -> &'static Mutex<Option<Rig>> {
    static LEFT: [Mutex<Option<Rig>>; Device::ALL.len()] = [const { Mutex::new(None) }; Device::ALL.len()];
    &LEFT[device as usize]
}

/// Lets the shard of a bench work until something that must happen has happened.
pub fn work_until<B>(bench: &mut B, rig: fn(&B) -> &Rig, what: &str, happened: fn(&mut B) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened(bench) {
        assert!(Instant::now() < deadline, "{what}: did not happen within {PATIENCE:?}");
        rig(bench).on_shard(|cx| async move { cx.next_turn().await });
    }
}

/// A state as a device saves it that was made of it: with what the host decides, of which the driver is told, an address and
/// a link.
pub fn here(state: &VirtioState, saved: &VirtioState) -> VirtioState {
    let mut state = state.clone();
    match (&mut state.device, &saved.device) {
        (DeviceState::Vsock { cid }, DeviceState::Vsock { cid: now }) => *cid = *now,
        (DeviceState::Net { link_up, .. }, DeviceState::Net { link_up: now, .. }) if *link_up != *now => {
            *link_up = *now;
            state.transport.interrupt_status |= saved.transport.interrupt_status & CONFIG_CHANGED;
        }
        _ => {}
    }
    state
}

/// Fills the memory that anybody but its guest wrote with zeroes.
pub fn clear(ram: &GuestRam) {
    for page in ram.take_host_dirty() {
        ram.write(page, &[0; 4096]).expect("a page of it");
    }
    ram.take_host_dirty();
}

fn block() -> Subject {
    let options = BlockOptions {
        id: "it".into(),
        serial: Serial::new("serial"),
        queues: 2,
        queue_size: 64,
        cache: Cache::Writeback,
    };
    let source = DiskSource::Memory { size: DISK, read_only: false };
    let info = source.info();
    let config = options.config(&info);
    let space = config.clone();
    Subject {
        identity: options.identity(&info),
        config,
        device: Box::new(move |cx, owner| {
            let disk = source.attach(cx, owner, || ())?;
            Ok(Box::new(BlockDevice::new(&options, space, disk)))
        }),
        queue: 0,
        request: |ram, at| {
            // A read of the first sector.
            ram.write(at, &[0; 16]).expect("in RAM");
            vec![Buffer::readable(at, 16), Buffer::writable(at + 0x1000, 513)]
        },
        release: None,
    }
}

fn entropy() -> Subject {
    let source = |bytes: &mut [u8]| {
        bytes.fill(FILLER);
        Ok(bytes.len())
    };
    Subject {
        identity: Rng::identity_of("it"),
        config: ConfigSpace::new([]),
        device: Box::new(move |_, _| Ok(Box::new(Rng::new("it", Box::new(source))))),
        queue: 0,
        request: |_, at| vec![Buffer::writable(at, 16)],
        release: None,
    }
}

/// A console whose output pipe has this capacity.
pub fn console(capacity: usize) -> (Subject, Ends) {
    static METRICS: OnceLock<Arc<DeviceMetrics>> = OnceLock::new();
    let metrics = METRICS.get_or_init(|| {
        let vm = Registry::new().register_vm(VmInfo::default());
        vm.register_device("it", DeviceKind::Console)
    });
    let (typing, input) = pipe(64);
    let (stream, reading) = pipe(capacity);
    let config = Console::config_of(ConsoleSize::default());
    let parts = ConsoleParts {
        id: "it".into(),
        config: config.clone(),
        input,
        output: ConsoleOutput::stream(stream),
        metrics: Arc::clone(metrics),
    };
    let subject = Subject {
        identity: Console::identity_of("it"),
        config,
        device: Box::new(|_, _| Ok(Box::new(Console::new(parts)))),
        queue: 1,
        request: |_, at| vec![Buffer::readable(at, 16)],
        release: None,
    };
    (subject, Ends { typing, reading })
}

/// A socket device with few connections, and what the process reaches it by.
pub fn vsock() -> (Subject, VsockHandle) {
    let options = VsockOptions { queue_size: 64, max_connections: 8, ..VsockOptions::new("it", CID) };
    let (source, handle) = VsockSource::new(None, None);
    let config = options.config();
    let space = config.clone();
    let subject = Subject {
        identity: options.identity(),
        config,
        device: Box::new(move |cx, owner| {
            let metrics = Registry::new().register_vm(VmInfo::default());
            let metrics = metrics.register_device("it", DeviceKind::Vsock);
            Ok(Box::new(VsockDevice::new(cx, owner, &options, space, source, metrics)?))
        }),
        queue: 1,
        request: |_, at| vec![Buffer::readable(at, 44)],
        release: None,
    };
    (subject, handle)
}
