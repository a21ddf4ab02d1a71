use std::os::unix::net::UnixStream;
use std::thread;

use ringlet_io::unix::Stream;
use ringlet_io::{EngineKind, GuestRam};

use super::*;
use crate::error::GuestError;
use crate::testing::{Buffer, Options, Rig, Subject};
use crate::virtio::spec::register;
use crate::vsock::packet::{HEADER, Op};
use crate::vsock::switch::Switch;
use crate::vsock::test_util::*;

/// A device with a connection whose other end writes without end, as long as it has a driver.
struct Busy(VsockDevice);

impl Busy {
    fn begin(switch: &Rc<Switch>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || while std::io::Write::write_all(&mut theirs, &[b'x'; 4096]).is_ok() {});
        switch.open_for_test(Stream::new(ours.into()).unwrap());
    }
}

impl VirtioDevice for Busy {
    fn identity(&self) -> &Identity {
        self.0.identity()
    }

    fn config(&self) -> &ConfigSpace {
        self.0.config()
    }

    fn negotiate(&mut self, features: u64) -> Result<(), GuestError> {
        Self::begin(&self.0.switch);
        self.0.negotiate(features)
    }

    fn start_queue(&mut self, index: u16, parts: QueueParts, state: Option<QueueState>) {
        self.0.start_queue(index, parts, state);
    }

    fn stop_queue(&mut self, index: u16) -> LocalBoxFuture<Option<QueueState>> {
        self.0.stop_queue(index)
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn save(&self) -> DeviceState {
        self.0.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        self.0.restore(state)
    }
}

/// Data comes without end.
fn receiving() -> Subject {
    let (options, (source, _)) = (options(), VsockSource::new(None, None));
    let config = options.config();
    let space = config.clone();
    Subject {
        config,
        device: Box::new(move |cx, owner| {
            let device = VsockDevice::new(cx, owner, &options, space, source, metrics())?;
            Ok(Box::new(Busy(device)))
        }),
        queue: RECEIVE,
        request: |_, gpa| vec![Buffer::writable(gpa, 100), Buffer::writable(gpa + 0x1000, 5000)],
        ..subject(super::super::test_util::options(), VsockSource::new(None, None).0, &metrics())
    }
}

/// Data goes out, and is not awaited by anybody.
fn sending() -> Subject {
    let request = |ram: &GuestRam, gpa: u64| {
        let header = Bench::header(Op::Reset, 9, 5);
        ram.write(gpa, &header.bytes()).unwrap();
        vec![Buffer::readable(gpa, HEADER as u32), Buffer::readable(gpa + 0x1000, 900)]
    };
    let (source, _) = VsockSource::new(None, None);
    Subject { queue: TRANSMIT, request, ..subject(options(), source, &metrics()) }
}

crate::virtio_conformance!(receiving_conforms, super::receiving);
crate::virtio_conformance!(sending_conforms, super::sending);

#[test]
fn a_driver_reads_its_context_id() {
    let bench = Bench::new();
    let mut bytes = [0; 8];
    bench.rig.read_config(&mut bytes);
    assert_eq!(u64::from_le_bytes(bytes), CID);
    assert_eq!(bench.rig.read(register::DEVICE_ID), 19);
    assert_eq!(bench.rig.identity.queue_sizes, [64, 64, 16]);
}

#[test]
fn sec_10_a_context_id_that_no_guest_has_is_refused() {
    let made = |cid: u64| {
        let rig = Rig::new(sending(), Options::new(EngineKind::Epoll));
        rig.on_shard(move |cx| async move {
            let (options, (source, _)) = (VsockOptions { cid, ..options() }, VsockSource::new(None, None));
            let owner = Owner::shard();
            VsockDevice::new(&cx, &owner, &options, options.config(), source, metrics()).is_ok()
        })
    };
    assert_eq!(
        [0, 1, 2, 3, MAX_CID, MAX_CID + 1, u64::MAX].map(made),
        [false, false, false, true, true, false, false]
    );
}
