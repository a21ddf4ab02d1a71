//! Virtio console (virtio 1.2, section 5.3): one port, whose two ends are bytes.
//!
//! ```text
//!  PipeWriter ──► pipe ──► receive task ──► queue 0 ──► guest
//!  ConsoleOutput ◄──────── transmit task ◄─ queue 1 ◄── guest
//! ```
//!
//! Owns the order of bytes and the waiting in both directions: input stays in its pipe until the guest offers a
//! buffer for it, output stays in the guest's buffer until there is room for it. So no byte is lost, nothing that
//! is held grows, and stopping never waits for a reader. Never knows what the bytes mean, files or terminals.

mod log;
mod output;
mod pipe;
mod receive;
mod transmit;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringlet_metrics::{DeviceMetrics, RequestKind, RequestStatus};

pub use self::log::ConsoleLog;
pub use self::output::ConsoleOutput;
pub use self::pipe::{Closed, PipeReader, PipeWriter, pipe};
use self::receive::receive;
use self::transmit::transmit;
use crate::error::GuestError;
use crate::state::StateError;
use crate::virtio::spec::device_type;
use crate::virtio::{
    ConfigSpace, DeviceMemory, DeviceState, HostEvent, Identity, LocalBoxFuture, OrderedTask, QueueParts,
    QueueState, VirtioDevice,
};

/// Capacity in bytes of a pipe that suits a console.
pub const PIPE_CAPACITY: usize = 64 << 10;

/// Number of the queue for input to the guest.
const RECEIVE: u16 = 0;
/// Number of the queue for output of the guest.
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 64;

/// VIRTIO_CONSOLE_F_SIZE: the configuration has the size of the terminal.
const F_SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: a byte can be written by way of the configuration.
const F_EMERG_WRITE: u64 = 1 << 2;

/// Length of the configuration (section 5.3.4): cols, rows, max_nr_ports, emerg_wr.
const CONFIG_LEN: usize = 12;
/// Offset of emerg_wr, 32 bits wide.
const EMERG_WR: u64 = 8;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Default for ConsoleSize {
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// What a console is made of. Plain data.
#[derive(Debug)]
pub struct ConsoleParts {
    /// Identifier within the VM, such as `console0`.
    pub id: String,
    /// Made by [`Console::config_of`].
    pub config: ConfigSpace,
    /// What the guest reads. It waits here until the guest does.
    pub input: PipeReader,
    /// Where goes what the guest prints.
    pub output: ConsoleOutput,
    /// The device's numbers.
    pub metrics: Arc<DeviceMetrics>,
}

/// The console device.
#[derive(Debug)]
pub struct Console {
    identity: Identity,
    config: ConfigSpace,
    /// The driver wants to know of a change of size.
    size_accepted: bool,
    input: Rc<PipeReader>,
    output: Rc<ConsoleOutput>,
    metrics: Arc<DeviceMetrics>,
    /// Bytes of the chain that the transmit queue offers first which have been handed on already.
    sent: Rc<Cell<u32>>,
    receive: Option<OrderedTask>,
    transmit: Option<OrderedTask>,
}

impl Console {
    /// What the device tells its driver; `id` is such as `console0`.
    pub fn identity_of(id: impl Into<String>) -> Identity {
        Identity {
            id: id.into(),
            device_type: device_type::CONSOLE,
            features: F_SIZE | F_EMERG_WRITE,
            queue_sizes: vec![QUEUE_SIZE; 2],
        }
    }

    /// What the device takes of the host's memory, without pipes and logs: what it copies at a time, beside its chains.
    pub fn memory() -> DeviceMemory {
        let copies = transmit::CHUNK + receive::CHUNK;
        DeviceMemory::of_chains(&Self::identity_of("")).and(copies as u64, 0)
    }

    /// A configuration space for a terminal of this size; [`HostEvent::Resized`] tells of another one later.
    pub fn config_of(size: ConsoleSize) -> ConfigSpace {
        let mut bytes = [0; CONFIG_LEN];
        size.write_to(&mut bytes);
        ConfigSpace::new(bytes)
    }

    /// A console.
    pub fn new(parts: ConsoleParts) -> Self {
        let ConsoleParts { id, config, input, output, metrics } = parts;
        Self {
            identity: Self::identity_of(id),
            config,
            size_accepted: false,
            input: Rc::new(input),
            output: Rc::new(output),
            metrics,
            sent: Rc::default(),
            receive: None,
            transmit: None,
        }
    }

    /// Sets the size, and tells a driver that wants to know.
    fn resize(&mut self, size: ConsoleSize) {
        if size == self.size() {
            return;
        }
        if self.size_accepted {
            self.config.publish(|bytes| size.write_to(bytes));
        } else {
            self.config.update(|bytes| size.write_to(bytes));
        }
    }

    fn size(&self) -> ConsoleSize {
        let mut fields = [0; 4];
        // Four bytes are there: the space has twelve.
        let _ = self.config.read(0, &mut fields);
        let [a, b, c, d] = fields;
        ConsoleSize { columns: u16::from_le_bytes([a, b]), rows: u16::from_le_bytes([c, d]) }
    }

    fn task(&mut self, index: u16) -> Option<&mut Option<OrderedTask>> {
        match index {
            RECEIVE => Some(&mut self.receive),
            TRANSMIT => Some(&mut self.transmit),
            _ => None,
        }
    }
}

impl ConsoleSize {
    /// Writes the fields cols and rows.
    fn write_to(self, config: &mut [u8]) {
        let fields = self.columns.to_le_bytes().into_iter().chain(self.rows.to_le_bytes());
        config.iter_mut().zip(fields).for_each(|(byte, value)| *byte = value);
    }
}

impl VirtioDevice for Console {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn negotiate(&mut self, features: u64) -> Result<(), GuestError> {
        self.size_accepted = features & F_SIZE != 0;
        Ok(())
    }

    /// Prints a byte in an emergency (section 5.3.4, emerg_wr): at once or never, before any queue is set up.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestError> {
        let byte = match *data {
            _ if offset != EMERG_WR => return Err(GuestError::ReadOnly { offset }),
            [byte, _, _, _] => byte,
            _ => return Err(GuestError::BadWidth { offset, width: data.len() }),
        };
        let put = self.output.put(&[byte]);
        let lost = put.lost + u64::from(put.taken == 0);
        self.metrics.dropped_bytes.add(lost);
        self.metrics.completed(RequestKind::Other, RequestStatus::Ok, 1, Duration::ZERO);
        Ok(())
    }

    fn start_queue(&mut self, index: u16, parts: QueueParts, state: Option<QueueState>) {
        let task = if index == RECEIVE {
            let input = Rc::clone(&self.input);
            OrderedTask::spawn(parts, state, |queue, doorbell| receive(queue, doorbell, input))
        } else {
            if state.is_none() {
                self.sent.set(0);
            }
            let (output, sent) = (Rc::clone(&self.output), Rc::clone(&self.sent));
            OrderedTask::spawn(parts, state, |queue, doorbell| transmit(queue, doorbell, output, sent))
        };
        if let Some(slot) = self.task(index) {
            *slot = Some(task);
        }
    }

    fn stop_queue(&mut self, index: u16) -> LocalBoxFuture<Option<QueueState>> {
        let task = self.task(index).and_then(Option::take);
        Box::pin(async move { task?.stop().await })
    }

    fn reset(&mut self) {
        let Self {
            identity: _,
            config: _,
            size_accepted,
            input: _,
            output: _,
            metrics: _,
            sent,
            receive: _,
            transmit: _,
        } = self;
        *size_accepted = false;
        sent.set(0);
    }

    fn save(&self) -> DeviceState {
        let ConsoleSize { columns, rows } = self.size();
        DeviceState::Console { columns, rows, sent: self.sent.get() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Console { columns, rows, sent } = *state else {
            return Err(StateError::Field { device: "console", field: "kind", value: 0 });
        };
        let size = ConsoleSize { columns, rows };
        self.config.update(|bytes| size.write_to(bytes));
        self.sent.set(sent);
        Ok(())
    }

    fn notice(&mut self, event: HostEvent) {
        if let HostEvent::Resized { columns, rows } = event {
            self.resize(ConsoleSize { columns, rows });
        }
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
