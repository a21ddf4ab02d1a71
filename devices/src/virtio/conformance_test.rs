//! The conformance tests on a device that copies what it reads into what it writes, backwards.

use std::rc::Rc;

use ringlet_io::{Cost, CostKind, Gate, GuestRam, Limiter};

use super::spec::device_type;
use super::{
    Chain, ConfigSpace, DeviceState, Identity, LocalBoxFuture, QueueParts, QueueState, QueueTask,
    RequestHandler, VirtioDevice,
};
use crate::error::GuestError;
use crate::state::StateError;
use crate::testing::{Buffer, Subject};

/// The device: two queues, 8 bytes of configuration of which the driver may write the first four.
pub(super) struct Echo {
    identity: Identity,
    config: ConfigSpace,
    gate: Gate,
    queues: [Option<QueueTask>; 2],
}

struct Handler(Limiter);

impl RequestHandler for Handler {
    type Request = Vec<u8>;

    fn parse(&self, ram: &GuestRam, chain: &Chain) -> (Vec<u8>, Cost) {
        let mut bytes = vec![0; usize::try_from(chain.readable_len()).unwrap()];
        chain.copy_out(ram, 0, &mut bytes).unwrap();
        let cost = Cost { kind: CostKind::Read, bytes: bytes.len() as u64 };
        (bytes, cost)
    }

    async fn execute(self: Rc<Self>, ram: GuestRam, chain: Chain, mut request: Vec<u8>) -> u32 {
        self.0.admit(Cost::other()).await;
        request.reverse();
        request.truncate(usize::try_from(chain.writable_len()).unwrap());
        chain.copy_in(&ram, 0, &request).unwrap();
        request.len() as u32
    }
}

impl VirtioDevice for Echo {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestError> {
        let end = usize::try_from(offset).unwrap() + data.len();
        if end > 4 {
            return Err(GuestError::ReadOnly { offset });
        }
        self.config.update(|bytes| bytes[end - data.len()..end].copy_from_slice(data));
        Ok(())
    }

    fn start_queue(&mut self, index: u16, parts: QueueParts, state: Option<QueueState>) {
        let handler = Rc::new(Handler(Limiter::gated(self.gate.clone())));
        let cx = parts.cx.clone();
        self.queues[usize::from(index)] = Some(QueueTask::spawn(&cx, parts, state, handler));
    }

    fn stop_queue(&mut self, index: u16) -> LocalBoxFuture<Option<QueueState>> {
        let queue = self.queues[usize::from(index)].take();
        Box::pin(async move { queue?.stop().await })
    }

    fn reset(&mut self) {
        self.config.update(|bytes| bytes[..4].fill(0));
    }

    fn save(&self) -> DeviceState {
        DeviceState::Stateless
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Stateless => Ok(()),
            _ => Err(StateError::Field { device: "echo", field: "kind", value: 0 }),
        }
    }
}

pub(super) fn subject() -> Subject {
    let gate = Gate::new();
    let identity = Identity {
        id: "echo0".into(),
        device_type: device_type::ENTROPY,
        features: 0b101,
        queue_sizes: vec![16, 32],
    };
    let config = ConfigSpace::new([0, 0, 0, 0, 5, 6, 7, 8]);
    let (held, id, space) = (gate.clone(), identity.clone(), config.clone());
    Subject {
        identity,
        config,
        device: Box::new(move |_, _| {
            Ok(Box::new(Echo { identity: id, config: space, gate: held, queues: [None, None] }))
        }),
        queue: 1,
        request: |ram, at| {
            ram.write(at, b"0123456789abcdef").unwrap();
            vec![Buffer::readable(at, 10), Buffer::readable(at + 10, 6), Buffer::writable(at + 0x100, 64)]
        },
        release: Some(Box::new(move || gate.open())),
    }
}

crate::virtio_conformance!(conformance, subject);
