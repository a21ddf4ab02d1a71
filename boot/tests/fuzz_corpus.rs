//! Replays the fuzz corpus of images: seeds named `valid-…` are accepted and loaded, `bad-…` are refused, and
//! whatever a fuzzer found once (any other name) at least does not panic.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]

use std::fs;
use std::path::Path;

use ringlet_boot::layout::ram_regions;
use ringlet_boot::{BootError, BootRequest, Image, load};
use ringlet_io::{Backing, GuestRam};

#[test]
fn sec_06_the_corpus_is_accepted_and_refused_as_its_names_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/boot_image");
    let mut seen = [0, 0];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let image = Image::open(&path);
        if name.starts_with("valid-") {
            seen[0] += 1;
            load_into_4_mib(&image.unwrap(), name == "valid-more-ram-needed");
        } else if name.starts_with("bad-") {
            seen[1] += 1;
            let message = image.unwrap_err().to_string();
            assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
        }
    }
    assert!(seen[0] >= 7 && seen[1] >= 14, "the corpus is incomplete: {seen:?}");
}

fn load_into_4_mib(image: &Image, too_large: bool) {
    let ram = GuestRam::new(&ram_regions(4 << 20), Backing::Pages4K).unwrap();
    let request = BootRequest { image, protocol: None, cmdline: "", args: &[], initrd: None, vcpus: 1 };
    match load(&ram, &request) {
        Err(BootError::ImageTooLarge { .. }) => assert!(too_large, "{}", image.name()),
        other => assert!(other.is_ok() && !too_large, "{}: {other:?}", image.name()),
    }
}
