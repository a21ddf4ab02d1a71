use super::I8042;
use crate::{Action, BusDevice, GuestError};

#[test]
fn the_reset_command_resets_and_nothing_else_does() {
    for value in 0..=0xFF {
        let expected = match value {
            0xFE => Ok(Action::Reset),
            _ => Err(GuestError::BadValue { offset: 0, value: value.into() }),
        };
        assert_eq!(I8042::Command.write(0, &[value]), expected);
        assert_eq!(
            I8042::Data.write(0, &[value]),
            Err(GuestError::BadValue { offset: 0, value: value.into() })
        );
    }
}

#[test]
fn a_driver_may_write_and_never_finds_a_byte() {
    let mut byte = [0xAA];
    assert_eq!(I8042::Command.read(0, &mut byte), Ok(Action::None));
    assert_eq!(byte, [0x1C]);
    assert_eq!(byte[0] & 0b11, 0, "input and output buffer empty");
    assert_eq!(I8042::Data.read(0, &mut byte), Ok(Action::None));
    assert_eq!(byte, [0]);
}

#[test]
fn sec_07_only_bytes_are_accepted() {
    for device in [I8042::Command, I8042::Data] {
        for width in [2, 4, 8] {
            let error = GuestError::BadWidth { offset: 0, width };
            assert_eq!(device.write(0, &[0xFE; 8][..width]), Err(error.clone()));
            assert_eq!(device.read(0, &mut [0; 8][..width]), Err(error));
        }
        assert_eq!(device.read(1, &mut [0]), Err(GuestError::BadRegister { offset: 1 }));
        assert_eq!(device.write(1, &[0xFE]), Err(GuestError::BadRegister { offset: 1 }));
    }
}
