//! The device as its worker sees it: features, configuration space, saved state.

use super::*;
use crate::block::request::{Command, Shape};
use crate::block::test_util::TestDisk;

const ALL: u64 = !0;

fn options() -> BlockOptions {
    BlockOptions {
        id: "disk0".into(),
        serial: Serial::new("serial"),
        queues: 2,
        queue_size: 128,
        cache: Cache::Writeback,
    }
}

/// A device whose driver accepted `features` of what is offered.
fn device(features: u64) -> (BlockDevice, TestDisk) {
    let disk = TestDisk::new(64);
    let config = options().config(&disk.info());
    let mut device = BlockDevice::new(&options(), config, Rc::new(disk.clone()));
    device.negotiate(device.identity().offered() & features).unwrap();
    (device, disk)
}

fn writeback(device: &BlockDevice) -> bool {
    let mut byte = [0xFF];
    assert!(device.config().read(WRITEBACK_OFFSET, &mut byte));
    assert_eq!(byte[0], u8::from(device.shared.durability.is_writeback()), "what is read is what is done");
    byte[0] == 1
}

fn capacity_of(device: &BlockDevice) -> u64 {
    let mut bytes = [0; 8];
    assert!(device.config().read(0, &mut bytes));
    u64::from_le_bytes(bytes)
}

#[test]
fn identity_follows_from_options_and_disk() {
    let (device, disk) = device(ALL);
    let identity = device.identity();
    assert_eq!(*identity, options().identity(&disk.info()));
    assert_eq!((identity.id.as_str(), identity.device_type), ("disk0", 2));
    assert_eq!(identity.queue_sizes, [128, 128]);
    assert_eq!(identity.features, device.layout.features());
}

#[test]
fn a_capacity_is_a_whole_number_of_blocks() {
    let info = TestDisk::new(64).info();
    for (size, block_size, sectors) in
        [(0, 512, 0), (511, 512, 0), (1025, 512, 2), (8191, 4096, 8), (u64::MAX, 512, (1 << 55) - 1)]
    {
        assert_eq!(capacity(&DiskInfo { size, block_size, ..info }), sectors, "{size} / {block_size}");
    }
    assert_eq!(capacity(&DiskInfo { size: 1024, block_size: 0, ..info }), 2, "no division by zero");
}

#[test]
fn the_cache_is_on_only_if_the_driver_can_flush() {
    let flush = bit(VIRTIO_BLK_F_FLUSH);
    for (features, on) in [(ALL, true), (flush, true), (!flush, false), (0, false)] {
        assert_eq!(writeback(&device(features).0), on, "{features:#x}");
    }
}

#[test]
fn the_driver_turns_the_cache_off_and_on() {
    let (mut device, _) = device(ALL);
    let generation = device.config().generation();
    assert_eq!(device.write_config(32, &[0]), Ok(()));
    assert!(!writeback(&device));
    assert_ne!(device.config().generation(), generation);
    assert_eq!(device.write_config(32, &[1]), Ok(()));
    assert!(writeback(&device));
}

#[test]
fn sec_07_nothing_else_can_be_written() {
    let (mut full, _) = device(ALL);
    let before = full.config().bytes();
    for offset in (0..64).filter(|offset| *offset != 32) {
        for len in [1, 2, 4] {
            assert_eq!(full.write_config(offset, &[0; 4][..len]), Err(GuestError::ReadOnly { offset }));
        }
    }
    for value in 2..=0xFF_u8 {
        let error = GuestError::BadValue { offset: 32, value: u64::from(value) };
        assert_eq!(full.write_config(32, &[value]), Err(error));
    }
    for width in [2, 4] {
        assert_eq!(full.write_config(32, &[0; 4][..width]), Err(GuestError::BadWidth { offset: 32, width }));
    }
    assert_eq!(full.config().bytes(), before);
    full.reset();
    let early = full.write_config(32, &[0]);
    assert_eq!(early, Err(GuestError::ReadOnly { offset: 32 }), "not before it was negotiated");
    let (mut fixed, _) = device(!bit(VIRTIO_BLK_F_CONFIG_WCE));
    assert_eq!(fixed.write_config(32, &[0]), Err(GuestError::ReadOnly { offset: 32 }));
    let (mut flushless, _) = device(!bit(VIRTIO_BLK_F_FLUSH));
    assert_eq!(flushless.write_config(32, &[1]), Err(GuestError::BadValue { offset: 32, value: 1 }));
    assert!(!writeback(&flushless));
}

#[test]
fn only_negotiated_requests_are_served() {
    let parse = |device: &BlockDevice, kind: u32| {
        let shape = Shape { readable: 32, writable: 1 };
        let request =
            crate::block::request::Request::parse(shape, &device.shared.rules.get(), |from, buf| {
                buf.fill(0);
                if from == 0 {
                    buf[..4].copy_from_slice(&kind.to_le_bytes());
                }
                Ok(())
            });
        request.command
    };
    for (features, kind, served) in [
        (ALL, 11, true),
        (ALL, 13, true),
        (!bit(VIRTIO_BLK_F_DISCARD), 11, false),
        (!bit(VIRTIO_BLK_F_DISCARD), 13, true),
        (!bit(VIRTIO_BLK_F_WRITE_ZEROES), 11, true),
        (!bit(VIRTIO_BLK_F_WRITE_ZEROES), 13, false),
    ] {
        assert_eq!(parse(&device(features).0, kind).is_ok(), served, "type {kind}, {features:#x}");
    }
    assert_eq!(parse(&device(0).0, 4).unwrap(), Command::Flush, "harmless, so it is served anyway");
}

#[test]
fn a_disk_that_grew_is_told() {
    let (mut device, disk) = device(ALL);
    let generation = device.config().generation();
    device.notice(HostEvent::BackendChanged);
    assert_eq!((capacity_of(&device), device.config().generation()), (64, generation), "nothing changed");
    disk.set_info(|info| info.size = 100 * 512);
    device.notice(HostEvent::Resized { columns: 1, rows: 1 });
    assert_eq!(capacity_of(&device), 64, "that is no business of a disk");
    device.notice(HostEvent::BackendChanged);
    assert_eq!((capacity_of(&device), device.shared.rules.get().capacity), (100, 100));
    assert_ne!(device.config().generation(), generation);
    assert!(writeback(&device) && device.shared.rules.get().discard, "the rest stays");
    disk.set_info(|info| info.size = 10 * 512);
    device.notice(HostEvent::BackendChanged);
    assert_eq!((capacity_of(&device), device.shared.rules.get().capacity), (10, 10));
}

#[test]
fn a_reset_forgets_the_driver() {
    let (mut device, disk) = device(ALL);
    device.write_config(32, &[0]).unwrap();
    disk.set_info(|info| info.size = 100 * 512);
    device.notice(HostEvent::BackendChanged);
    device.shared.durability.set_lost();
    device.reset();
    assert_eq!((device.features, device.shared.rules.get()), (0, rules(&device.layout, 0)));
    assert!(!device.shared.durability.is_writeback());
    assert!(device.shared.durability.is_lost(), "a driver that starts anew does not get its data back");
    assert_eq!(capacity_of(&device), 100);
    device.negotiate(device.identity().offered()).unwrap();
    assert!(writeback(&device));
}

#[test]
fn a_saved_state_comes_back() {
    for (on, lost) in [(false, false), (true, false), (true, true)] {
        let (mut from, _) = device(ALL);
        from.write_config(32, &[u8::from(on)]).unwrap();
        if lost {
            from.shared.durability.set_lost();
        }
        let (mut to, _) = device(ALL);
        assert_eq!(to.restore(&from.save()), Ok(()));
        assert_eq!((writeback(&to), to.shared.durability.is_lost()), (on, lost));
        assert_eq!((to.save(), to.config().bytes()), (from.save(), from.config().bytes()));
    }
}

#[test]
fn sec_10_a_state_that_no_driver_could_have_made_is_refused() {
    let wce = bit(VIRTIO_BLK_F_CONFIG_WCE);
    let flush = bit(VIRTIO_BLK_F_FLUSH);
    for (features, on, possible) in [
        (wce | flush, false, true),
        (wce | flush, true, true),
        (flush, true, true),
        (flush, false, false),
        (wce, false, true),
        (wce, true, false),
        (0, false, true),
        (0, true, false),
    ] {
        let (mut device, _) = device(features);
        let before = device.save();
        let state = DeviceState::Block { writeback: on, lost: false };
        assert_eq!(device.restore(&state).is_ok(), possible, "{features:#x}, {on}");
        assert!(possible || device.save() == before);
    }
    assert!(device(ALL).0.restore(&DeviceState::Stateless).is_err());
}

#[test]
fn a_queue_that_does_not_run_stops_at_once() {
    let (mut device, _) = device(ALL);
    for index in [0, 1, 2, u16::MAX] {
        let stop = device.stop_queue(index);
        assert_eq!(futures_util::FutureExt::now_or_never(stop), Some(None));
    }
}
