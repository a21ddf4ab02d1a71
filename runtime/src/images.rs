//! The guest images inside the binary, by name. They are built from `examples/guests` by the build script; nothing
//! here reads or checks them.

/// A guest image that comes with Ringlet.
#[derive(Debug)]
#[non_exhaustive]
pub struct BundledImage {
    /// What `ringlet run` calls it.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// The ELF64 image, with both entries (PVH and Linux 64-bit).
    pub bytes: &'static [u8],
}

/// An image of the build script's output folder.
macro_rules! bundled {
    ($name:literal, $about:literal) => {
        BundledImage {
            name: $name,
            about: $about,
            bytes: include_bytes!(concat!(env!("OUT_DIR"), "/images/", $name)),
        }
    };
}

/// All bundled images, sorted by name.
pub static IMAGES: &[BundledImage] = &[
    bundled!("alloc", "touches all of its memory, verifies it, prints how much it was"),
    bundled!("blkbench", "measures a virtio disk, or with --verify checks what it stores"),
    bundled!("burst", "computes and sleeps in turn on all vCPUs, for the microseconds of its arguments"),
    bundled!("echo", "sends back lines from the virtio console, and tells its size"),
    bundled!("exit", "exits with the code that is its argument"),
    bundled!("fault", "ends in the way that its argument names; list: the ways"),
    bundled!("hello", "prints its command line, its memory and a computed value; --brief: one line"),
    bundled!("hostile", "does everything wrong that a guest can; its argument is a seed"),
    bundled!("hostile-virtio", "attacks all virtio devices; its argument is a seed; destroys disks"),
    bundled!("http", "serves HTTP on a virtio network: a page, an echo, bytes and statistics"),
    bundled!("idle", "says that it is ready, then sleeps forever"),
    bundled!("netbench", "measures TCP and UDP on a virtio network, or serves who does"),
    bundled!("rng", "reads and judges random bytes of the virtio entropy device"),
    bundled!("smp", "counts on all vCPUs together"),
    bundled!("spin", "counts forever, or to as many millions as its argument says"),
    bundled!("storm", "asks for one thing again and again, as its argument names it; calm: for nothing"),
    bundled!("vsock-echo", "sends back what comes over vsock, or checks and measures that of the host"),
];

/// The bundled image of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static BundledImage> {
    IMAGES.iter().find(|image| image.name == name)
}

/// The bundled image that somebody may have meant: a slip or two away.
pub(crate) fn nearest(name: &str) -> Option<&'static BundledImage> {
    let distances = IMAGES.iter().map(|image| (slips(name, image.name), image));
    let (slips, image) = distances.min_by_key(|(slips, _)| *slips)?;
    // As many as letters would make any name of another.
    (slips <= 2 && slips < image.name.len().min(name.len())).then_some(image)
}

/// How many letters have to be put in, taken out or replaced to make `b` of `a` (Levenshtein's distance).
fn slips(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (n, from) in (1..).zip(a.chars()) {
        let mut next = vec![n];
        for ((to, pair), left) in b.chars().zip(row.windows(2)).zip(0..) {
            let &[diagonal, above] = pair else { continue };
            let left: usize = next.get::<usize>(left).copied().unwrap_or(n);
            next.push((diagonal + usize::from(from != to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{IMAGES, find, nearest};

    #[test]
    fn a_name_with_a_slip_is_near_and_another_is_not() {
        for (name, meant) in
            [("helo", "hello"), ("hallo", "hello"), ("blkbnech", "blkbench"), ("smpp", "smp")]
        {
            assert_eq!(nearest(name).unwrap().name, meant, "{name}");
        }
        for name in ["", "a", "zz", "nonesuch", "vmlinux"] {
            assert!(nearest(name).is_none(), "{name}: {:?}", nearest(name));
        }
    }

    #[test]
    fn names_are_sorted_unique_and_found() {
        assert!(IMAGES.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(IMAGES.iter().all(|image| find(image.name).is_some_and(|found| std::ptr::eq(found, image))));
        assert!(find("nonesuch").is_none());
    }

    #[test]
    fn every_image_is_an_elf64_file_for_x86_64() {
        for image in IMAGES {
            assert_eq!(image.bytes[..6], *b"\x7fELF\x02\x01", "{}", image.name);
            assert_eq!(image.bytes[18..20], 62u16.to_le_bytes(), "{}", image.name);
        }
    }
}
