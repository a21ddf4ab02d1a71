//! The control queue (virtio 1.2, section 5.1.6.5): what a driver asks of the interface itself.
//!
//! Owns the commands: each is copied once, parsed from the copy, checked against what was negotiated, and answered when
//! it is done. Filters of received packets are accepted and not applied: they are best effort (section
//! 5.1.6.5.1), and the host's side gives what is for the guest. Never does anything for a command that it cannot make
//! sense of.

use std::rc::Rc;

use ringlet_io::{DoorbellListener, MonoTime};
use ringlet_metrics::{GuestErrorKind, RequestKind, RequestStatus, guest_error};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};

use super::config::{Mac, bit, guest_offload_bits, guest_offloads, is_consistent};
use super::host::{Host, Settings};
use crate::virtio::{Chain, Ordered, OutsideChain, QueueError};

/// Most addresses that a table of addresses may have.
pub const MAX_ADDRESSES: usize = 64;
/// Bytes of the longest command: its class and number, and two tables of addresses.
pub const MAX_COMMAND: usize = 2 + 2 * (4 + 6 * MAX_ADDRESSES);

const OK: u8 = VIRTIO_NET_OK as u8;
const ERR: u8 = VIRTIO_NET_ERR as u8;

/// What a driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Which packets it wants to receive (section 5.1.6.5.1).
    ReceiveMode,
    /// Which addresses it wants to receive packets for (section 5.1.6.5.2).
    Addresses,
    /// The interface's address (section 5.1.6.5.2).
    Mac(Mac),
    /// How many pairs of queues are used (section 5.1.6.5.5).
    Pairs(u16),
    /// What received packets may leave unfinished (section 5.1.6.5.6), as feature bits.
    Offloads(u64),
}

/// Why a command is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It does not exist, or belongs to a feature that was not negotiated.
    #[error("command {command} of class {class} was not negotiated")]
    Unknown {
        /// Its class.
        class: u8,
        /// Its number.
        command: u8,
    },
    /// It is not as long as such a command is.
    #[error("command {command} of class {class} with {len} bytes")]
    Length {
        /// Its class.
        class: u8,
        /// Its number.
        command: u8,
        /// Bytes behind class and number.
        len: usize,
    },
    /// It has no class or number, or is longer than any.
    #[error("a command of {len} bytes")]
    NoCommand {
        /// All its bytes.
        len: u64,
    },
    /// An address that an interface cannot have, or not this one.
    #[error("the interface cannot have the address {0}")]
    Mac(Mac),
    /// No pairs, or more than there are.
    #[error("{0} pairs of queues are not there")]
    Pairs(u16),
    /// Offloads that were not negotiated, or without others that they need.
    #[error("offloads {0:#x} were not negotiated, or lack what they need")]
    Offloads(u64),
    /// The chain ends before its length. A mistake of ours.
    #[error(transparent)]
    Chain(#[from] OutsideChain),
}

impl Command {
    /// Parses a command of a driver that accepted `features`.
    ///
    /// # Errors
    /// What is wrong; [`ControlError::Mac`], [`ControlError::Pairs`] only where it is executed.
    pub fn parse(bytes: &[u8], features: u64) -> Result<Self, ControlError> {
        let [class, command, data @ ..] = bytes else {
            return Err(ControlError::NoCommand { len: bytes.len() as u64 });
        };
        let (class, command) = (*class, *command);
        let has = |feature: u32| features & bit(feature) != 0;
        let parsed = match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_RX, 0..=VIRTIO_NET_CTRL_RX_ALLMULTI) if has(VIRTIO_NET_F_CTRL_RX) => {
                matches!(data, [0 | 1]).then_some(Self::ReceiveMode)
            }
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLUNI..=VIRTIO_NET_CTRL_RX_NOBCAST)
                if has(VIRTIO_NET_F_CTRL_RX_EXTRA) =>
            {
                matches!(data, [0 | 1]).then_some(Self::ReceiveMode)
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) if has(VIRTIO_NET_F_CTRL_RX) => {
                addresses(data).and_then(addresses).filter(|rest| rest.is_empty()).map(|_| Self::Addresses)
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) if has(VIRTIO_NET_F_CTRL_MAC_ADDR) => {
                data.try_into().ok().map(|bytes| Self::Mac(Mac(bytes)))
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(VIRTIO_NET_F_MQ) => {
                data.try_into().ok().map(|bytes| Self::Pairs(u16::from_le_bytes(bytes)))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
                if has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
            {
                data.try_into().ok().map(|bytes| Self::Offloads(u64::from_le_bytes(bytes)))
            }
            _ => return Err(ControlError::Unknown { class, command }),
        };
        match parsed {
            Some(Self::Offloads(wanted)) if guest_offload_bits(features) & wanted != wanted => {
                Err(ControlError::Offloads(wanted))
            }
            Some(Self::Offloads(wanted)) if !is_consistent(wanted) => Err(ControlError::Offloads(wanted)),
            Some(parsed) => Ok(parsed),
            None => Err(ControlError::Length { class, command, len: data.len() }),
        }
    }
}

/// What comes after a table of addresses: their number and themselves. `None` if it is too long, or not all there.
fn addresses(bytes: &[u8]) -> Option<&[u8]> {
    let (count, rest) = bytes.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok().filter(|count| *count <= MAX_ADDRESSES)?;
    rest.get(6 * count..)
}

/// Serves the control queue; ends only if it breaks.
pub(super) async fn control(
    queue: Rc<Ordered>,
    mut doorbell: DoorbellListener,
    host: Rc<Host>,
) -> QueueError {
    loop {
        if let Err(error) = control_one(&queue, &mut doorbell, &host).await {
            return error;
        }
    }
}

/// Does the next command. At every await it is still the driver's, and is done anew after a stop: each says what
/// is to be, not what is to change.
async fn control_one(
    queue: &Ordered,
    doorbell: &mut DoorbellListener,
    host: &Host,
) -> Result<(), QueueError> {
    let chain = queue.offered(doorbell).await?;
    let begun = MonoTime::now();
    if chain.writable_len() == 0 {
        return queue.refuse(&chain, "no byte for the answer");
    }
    let (answer, status) = match read(queue, &chain, host).and_then(|command| host.accept(command)) {
        Ok(()) if host.is_settled() => (OK, RequestStatus::Ok),
        Ok(()) => match queue.wait_for(doorbell, host.settle()).await? {
            Ok(()) => (OK, RequestStatus::Ok),
            Err(error) => {
                host.fail(&error);
                (ERR, RequestStatus::IoError)
            }
        },
        Err(error) => {
            guest_error!(queue.log, GuestErrorKind::BadRequest, "{}: {error}", queue.metrics.id());
            (ERR, RequestStatus::IoError)
        }
    };
    // There is a byte; if not, that is our mistake, and breaks the queue.
    chain.copy_in(&queue.ram, 0, &[answer]).map_err(|error| QueueError::Ring(error.to_string()))?;
    queue.complete(&chain, 1)?;
    queue.metrics.completed(RequestKind::Control, status, 0, MonoTime::now().since(begun));
    Ok(())
}

/// Copies a command and parses it.
fn read(queue: &Ordered, chain: &Chain, host: &Host) -> Result<Command, ControlError> {
    let mut buffer = [0; MAX_COMMAND];
    let len = chain.readable_len();
    let bytes = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len));
    let bytes = bytes.ok_or(ControlError::NoCommand { len })?;
    chain.copy_out(&queue.ram, 0, bytes)?;
    Command::parse(bytes, host.features.get())
}

impl Host {
    /// Takes a command over. The host's side is to be settled afterwards.
    fn accept(&self, command: Command) -> Result<(), ControlError> {
        match command {
            Command::ReceiveMode | Command::Addresses => {}
            Command::Mac(mac) if !self.may_have(mac) => return Err(ControlError::Mac(mac)),
            Command::Mac(mac) => self.set_mac(mac),
            Command::Pairs(pairs) if pairs == 0 || pairs > self.layout.pairs => {
                return Err(ControlError::Pairs(pairs));
            }
            Command::Pairs(pairs) => self.want(Settings { pairs, ..self.wanted() }),
            Command::Offloads(bits) => {
                self.want(Settings { offloads: guest_offloads(bits), ..self.wanted() });
            }
        }
        Ok(())
    }

    /// Whether the driver may give the interface this address.
    pub(super) fn may_have(&self, mac: Mac) -> bool {
        mac == self.layout.mac || mac.is_station() && self.layout.mac_changes
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
