//! Untrusted image bytes: validate them, and load what is accepted into a small VM by every entry it has.
//!
//! Fails on a panic, on a bad memory access, if something that was accepted cannot be copied, and if a page is
//! written that belongs neither to the boot area nor to the image.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use ringlet_boot::layout::{BOOT_AREA_END, IMAGE_START, PAGE_SIZE, ram_regions};
use ringlet_boot::{BootError, BootRequest, Image, Protocol, load};
use ringlet_io::{Backing, GuestRam};

const RAM_SIZE: u64 = 4 << 20;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(image) = Image::from_bytes("fuzz", bytes.to_vec()) else { return Corpus::Keep };
    let protocols = [Protocol::Pvh, Protocol::Linux64].into_iter().filter(|&p| image.supports(p));
    for protocol in protocols {
        check(&image, protocol);
    }
    Corpus::Keep
});

fn check(image: &Image, protocol: Protocol) {
    let ram = GuestRam::new(&ram_regions(RAM_SIZE), Backing::Pages4K).expect("4 MiB of RAM");
    let request =
        BootRequest { image, protocol: Some(protocol), cmdline: "quiet", args: &[], initrd: None, vcpus: 1 };
    match load(&ram, &request) {
        Ok(init) => assert!((IMAGE_START..image.memory_end()).contains(&init.regs.rip)),
        Err(BootError::ImageTooLarge { .. }) => assert!(image.memory_end() > RAM_SIZE),
        Err(error) => panic!("accepted, but not loaded: {error}"),
    }
    for page in ram.take_host_dirty() {
        let boot_area = (PAGE_SIZE..BOOT_AREA_END).contains(&page);
        assert!(boot_area || (IMAGE_START..image.memory_end()).contains(&page), "page {page:#x} was written");
    }
}
