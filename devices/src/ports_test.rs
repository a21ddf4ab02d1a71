use super::GuestPorts;
use crate::{Action, BusDevice, GuestError};

#[test]
fn a_32_bit_write_is_the_exit_code() {
    for code in [0_u32, 1, 42, 255, 256, u32::MAX] {
        assert_eq!(GuestPorts.write(0, &code.to_le_bytes()), Ok(Action::Exit(code)));
    }
}

#[test]
fn sec_07_no_other_width_exits() {
    for width in [1, 2, 8] {
        let error = GuestError::BadWidth { offset: 0, width };
        assert_eq!(GuestPorts.write(0, &[0; 8][..width]), Err(error));
    }
    assert_eq!(GuestPorts.write(1, &[123, 0]), Err(GuestError::BadWidth { offset: 1, width: 2 }));
    for offset in [2, 3, u64::MAX] {
        assert_eq!(GuestPorts.write(offset, &[123]), Err(GuestError::BadRegister { offset }));
    }
}

#[test]
fn only_the_agreed_byte_means_ready() {
    for value in 0..=0xFF {
        let expected = match value {
            123 => Ok(Action::Ready),
            _ => Err(GuestError::BadValue { offset: 1, value: value.into() }),
        };
        assert_eq!(GuestPorts.write(1, &[value]), expected);
    }
}

#[test]
fn there_is_nothing_to_read() {
    assert_eq!(GuestPorts.read(0, &mut [0; 4]), Err(GuestError::WriteOnly { offset: 0 }));
    assert_eq!(GuestPorts.read(1, &mut [0]), Err(GuestError::WriteOnly { offset: 1 }));
    assert_eq!(GuestPorts.read(2, &mut [0]), Err(GuestError::BadRegister { offset: 2 }));
}
