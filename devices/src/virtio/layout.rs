//! Where a queue is in guest memory.
//!
//! Owns the checks that a queue's size and addresses must pass before the queue may be used (virtio 1.2, section
//! 2.7): whatever the driver or a saved state says comes through here. Never reads guest memory.

use ringlet_io::GuestRam;

use super::spec::DESCRIPTOR_LEN;

/// A queue's size and addresses that were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLayout {
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
}

/// What the driver programmed, unchecked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawLayout {
    /// QueueNum.
    pub size: u32,
    /// Guest-physical address of the descriptor area.
    pub descriptors: u64,
    /// Guest-physical address of the driver area (available ring).
    pub driver: u64,
    /// Guest-physical address of the device area (used ring).
    pub device: u64,
}

impl RawLayout {
    /// Checks it for a queue of at most `max` descriptors.
    ///
    /// # Errors
    /// What is wrong, in words for the guest log.
    pub fn check(&self, max: u16, ram: &GuestRam) -> Result<QueueLayout, &'static str> {
        let Self { descriptors, driver, device, .. } = *self;
        let size = u16::try_from(self.size).map_err(|_| "its size is above the maximum")?;
        if size > max {
            return Err("its size is above the maximum");
        }
        if !size.is_power_of_two() {
            return Err("its size is no power of two");
        }
        let count = u64::from(size);
        // Both rings end in an event index, which is there whether it is used or not.
        let areas = [
            (
                descriptors,
                16,
                u64::from(DESCRIPTOR_LEN) * count,
                "the descriptor area is not aligned to 16 bytes",
                "the descriptor area is not in RAM",
            ),
            (
                driver,
                2,
                6 + 2 * count,
                "the driver area is not aligned to 2 bytes",
                "the driver area is not in RAM",
            ),
            (
                device,
                4,
                6 + 8 * count,
                "the device area is not aligned to 4 bytes",
                "the device area is not in RAM",
            ),
        ];
        for (gpa, align, len, misaligned, outside) in areas {
            if gpa % align != 0 {
                return Err(misaligned);
            }
            if !ram.contains(gpa, len) {
                return Err(outside);
            }
        }
        // virtio-queue takes that for a queue that was never set up.
        if driver == 0 {
            return Err("the driver area is at address 0");
        }
        Ok(QueueLayout { size, descriptors, driver, device })
    }
}

impl QueueLayout {
    /// Number of descriptors, a power of two.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical address of the descriptor area.
    pub fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// Guest-physical address of the driver area (available ring).
    pub fn driver(&self) -> u64 {
        self.driver
    }

    /// Guest-physical address of the device area (used ring).
    pub fn device(&self) -> u64 {
        self.device
    }
}
