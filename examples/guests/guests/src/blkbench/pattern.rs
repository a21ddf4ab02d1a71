//! What is written: every sector tells which one it is, which generation of it, and the sum of the rest, which follows
//! from these. So a sector in the wrong place, an old one, a torn one and a damaged one look different.

use core::fmt;

use crate::options::SECTOR;

const WORDS: usize = SECTOR as usize / 8;
const HEADER: usize = 4;
const MAGIC: u64 = u64::from_le_bytes(*b"blkbench");

/// A sector, as words.
type Sector = [u64; WORDS];

/// What a block of sectors is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Nobody knows.
    Anything,
    Zeroes,
    /// The pattern of this generation.
    Generation(u32),
}

/// A sector that does not hold what it should.
#[derive(Debug)]
pub(crate) struct Mismatch {
    sector: u64,
    expected: Expected,
    /// The first words of the sector.
    found: [u64; HEADER],
    /// The first byte that differs.
    byte: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [magic, sector, generation, _] = self.found;
        write!(f, "sector {}, byte {}: expected ", self.sector, self.byte)?;
        match self.expected {
            Expected::Generation(generation) => write!(f, "generation {generation}, found ")?,
            _ => write!(f, "zeroes, found ")?,
        }
        if self.found == [0; HEADER] {
            write!(f, "zeroes")
        } else if magic != MAGIC {
            write!(f, "foreign data {magic:#018x}")
        } else if self.byte >= HEADER * 8 {
            write!(f, "a torn or damaged sector")
        } else {
            write!(f, "sector {sector} generation {}", generation as u32)
        }
    }
}

/// Random-looking words that follow from a sector, its generation and the run's seed.
struct Words(u64);

impl Words {
    fn of(seed: u64, sector: u64, generation: u32) -> Self {
        Self(
            (seed << 32 | u64::from(generation)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ sector.wrapping_mul(0xd6e8_feb8_6659_fd93),
        )
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (self.0 ^ self.0 >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }
}

/// The third word: the generation, and above it what tells runs apart.
fn identity(seed: u64, generation: u32) -> u64 {
    seed << 32 | u64::from(generation)
}

/// Fills one sector.
fn fill_sector(words: &mut Sector, seed: u64, number: u64, generation: u32) {
    let mut pattern = Words::of(seed, number, generation);
    let mut sum = 0_u64;
    for word in &mut words[HEADER..] {
        *word = pattern.next();
        sum = sum.wrapping_add(*word);
    }
    words[..HEADER].copy_from_slice(&[MAGIC, number, identity(seed, generation), sum]);
}

/// The first byte of a sector that is not as filled.
fn wrong_byte(words: &Sector, seed: u64, number: u64, expected: Expected) -> Option<usize> {
    let differs = |index: usize, wanted: u64| {
        let difference = words[index] ^ wanted;
        (difference != 0).then(|| index * 8 + difference.trailing_zeros() as usize / 8)
    };
    let generation = match expected {
        Expected::Anything => return None,
        Expected::Zeroes => return (0..WORDS).find_map(|index| differs(index, 0)),
        Expected::Generation(generation) => generation,
    };
    let header = [MAGIC, number, identity(seed, generation)];
    if let Some(byte) = header.into_iter().enumerate().find_map(|(index, wanted)| differs(index, wanted)) {
        return Some(byte);
    }
    let mut pattern = Words::of(seed, number, generation);
    let mut sum = 0_u64;
    for (index, &word) in words.iter().enumerate().skip(HEADER) {
        let wanted = pattern.next();
        sum = sum.wrapping_add(wanted);
        if word != wanted {
            return differs(index, wanted);
        }
    }
    differs(HEADER - 1, sum)
}

/// Fills a block whose first sector is `first`.
pub(crate) fn fill(block: &mut [u64], seed: u64, first: u64, generation: u32) {
    let (sectors, _) = block.as_chunks_mut::<WORDS>();
    for (number, words) in (first..).zip(sectors) {
        fill_sector(words, seed, number, generation);
    }
}

/// Checks a block whose first sector is `first`.
pub(crate) fn check(block: &[u64], seed: u64, first: u64, expected: Expected) -> Result<(), Mismatch> {
    let (sectors, _) = block.as_chunks::<WORDS>();
    for (sector, words) in (first..).zip(sectors) {
        if let Some(byte) = wrong_byte(words, seed, sector, expected) {
            let found = [words[0], words[1], words[2], words[3]];
            return Err(Mismatch { sector, expected, found, byte });
        }
    }
    Ok(())
}
