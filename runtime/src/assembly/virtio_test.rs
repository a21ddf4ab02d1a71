use ringlet_devices::{Ioapic, Serial};
use ringlet_io::InterruptLine;

use super::*;

#[test]
fn every_device_has_a_window_and_a_pin_of_its_own() {
    let slots: Vec<_> = slots().collect();
    assert_eq!(slots.len(), MAX_DEVICES);
    assert_eq!(slots[0], Slot { address: 0xD000_0000, pin: 5 });
    let ioapic = std::sync::Arc::new(Ioapic::new());
    ioapic.line(Serial::PIN, InterruptLine::new().unwrap()).unwrap();
    for (index, slot) in slots.iter().enumerate() {
        assert_eq!(slot.address, 0xD000_0000 + 0x1000 * index as u64);
        // Neither taken by the serial port nor by another device.
        ioapic.line(slot.pin, InterruptLine::new().unwrap()).unwrap();
    }
}

#[test]
fn the_command_line_says_where_the_devices_are() {
    assert_eq!(cmdline(&VmConfig::new("x")), Vec::<String>::new());
    let config = VmConfig::new("x").drive(Drive::null("a", 512)).entropy().console();
    assert_eq!(
        cmdline(&config),
        [
            "virtio_mmio.device=4K@0xd0000000:5",
            "virtio_mmio.device=4K@0xd0001000:6",
            "virtio_mmio.device=4K@0xd0002000:7"
        ]
    );
}

#[test]
fn the_root_device_comes_first_and_is_named() {
    let mut config = VmConfig::new("x").drive(Drive::null("a", 512)).drive(Drive::null("b", 512));
    config.drives[1].is_root_device = true;
    assert_eq!(drives(&config).map(|drive| drive.drive_id.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(cmdline(&config)[0], "root=/dev/vda rw");
    config.drives[1].is_read_only = true;
    config.drives[1].partuuid = Some("0eaa-01".into());
    assert_eq!(cmdline(&config)[0], "root=PARTUUID=0eaa-01 ro");
}

#[test]
fn a_vm_with_every_device_has_room_for_its_command_line() {
    let config = (0..MAX_DEVICES)
        .fold(VmConfig::new("x"), |config, n| config.drive(Drive::null(format!("d{n}"), 512)));
    let line = cmdline(&config).join(" ");
    // Linux keeps the first 2047 characters.
    assert!(line.len() < 1024, "{}", line.len());
}
