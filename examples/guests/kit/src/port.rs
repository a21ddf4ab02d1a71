//! Port I/O. Ring 3 may use every port (IOPL 3). Each access is an exit to the VMM, about 30 µs on some hosts.

use core::arch::asm;

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt, $bits:literal) => {
        #[doc = concat!("Reads ", $bits, " bits from `port`.")]
        #[must_use]
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: port input changes no memory of ours; devices that write memory are out of the kit's sight.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $bits, " bits to `port`.")]
        pub fn $write(port: u16, value: $type) {
            // SAFETY: port output touches no memory of ours directly; it is ordered after earlier memory accesses
            // because the asm block may access memory as far as the compiler knows.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack, preserves_flags)) };
        }
    };
}

port!(inb, outb, u8, "al", "8");
port!(inw, outw, u16, "ax", "16");
port!(inl, outl, u32, "eax", "32");
