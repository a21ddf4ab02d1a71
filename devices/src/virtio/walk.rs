//! From descriptors in guest memory to a [`Chain`] (virtio 1.2, section 2.7.5).
//!
//! Owns the rules of a well-formed chain, and applies all of them before anybody sees the chain. `virtio-queue`
//! walks chains too, but its iterator ends silently where a chain is malformed, follows indirect tables
//! that were not negotiated, and accepts `INDIRECT|NEXT`; so the descriptors are read here: each once, as an
//! owned copy, an indirect table as a whole. Never reads what a buffer holds.
//!
//! Where the specification leaves room: a descriptor of zero bytes is refused (QEMU does so too, so drivers send
//! none), as is a table longer than any queue; the WRITE flag of a descriptor that points to a table is
//! ignored and plain descriptors may come before it (section 2.7.5.3.2); unknown flags are ignored.

use ringlet_io::{GuestRam, GuestRange};
use smallvec::{SmallVec, smallvec};

use super::chain::{Chain, Ranges};
use super::spec::{DESCRIPTOR_LEN, MAX_PIECES, MAX_QUEUE_SIZE, descriptor};

/// What is wrong with a chain. Each breaks the queue: nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor index at or above the number of descriptors.
    #[error("descriptor {index} of a table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// A descriptor comes up twice.
    #[error("the chain comes back to descriptor {index}")]
    Loop {
        /// Its index.
        index: u16,
    },
    /// More descriptors than the queue is long.
    #[error("more than {size} descriptors")]
    TooLong {
        /// Size of the queue.
        size: u16,
    },
    /// A buffer of zero bytes.
    #[error("descriptor {index} has no bytes")]
    Empty {
        /// Index of the descriptor.
        index: u16,
    },
    /// A buffer that is not in RAM, as a whole or in part.
    #[error("descriptor {index}: {gpa:#x}+{len:#x} is not in RAM")]
    NotInRam {
        /// Index of the descriptor.
        index: u16,
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A buffer to read after one to write.
    #[error("descriptor {index} is readable and comes after a writable one")]
    Order {
        /// Index of the descriptor.
        index: u16,
    },
    /// All buffers together have more than 2^32 - 1 bytes.
    #[error("more than 2^32 - 1 bytes")]
    TooLarge,
    /// Split at the borders of RAM regions there are more pieces than the kernel takes.
    #[error("more than {MAX_PIECES} pieces")]
    TooManyPieces,
    /// An indirect table without VIRTIO_F_INDIRECT_DESC.
    #[error("descriptor {index} is indirect, which was not negotiated")]
    NotNegotiated {
        /// Index of the descriptor.
        index: u16,
    },
    /// An indirect descriptor that is not the last of its chain.
    #[error("descriptor {index} is indirect and has a successor")]
    IndirectNext {
        /// Index of the descriptor.
        index: u16,
    },
    /// An indirect table in an indirect table.
    #[error("descriptor {index} of an indirect table is indirect")]
    Nested {
        /// Index of the descriptor in the table.
        index: u16,
    },
    /// An indirect table with a length of zero, not a multiple of 16, or above 16 times the longest queue.
    #[error("indirect table of {len} bytes")]
    TableLen {
        /// Its length in bytes.
        len: u32,
    },
}

/// One descriptor, copied.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    const LEN: usize = DESCRIPTOR_LEN as usize;

    fn parse(bytes: [u8; Self::LEN]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The bytes of an indirect table: one of 16 descriptors, as a packet mostly has, takes no allocation.
type Table = SmallVec<[u8; 16 * Descriptor::LEN]>;

/// Where a queue's descriptors are, and what is allowed of them.
#[derive(Debug)]
pub(super) struct Walker {
    ram: GuestRam,
    table: u64,
    size: u16,
    indirect: bool,
    /// Addresses at which one RAM region ends and another begins.
    borders: Box<[u64]>,
}

impl Walker {
    /// Walks the table of `size` descriptors at `table`, which is known to be in RAM. `indirect`: whether
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub(super) fn new(ram: &GuestRam, table: u64, size: u16, indirect: bool) -> Self {
        let mut borders = Vec::new();
        let mut end = None;
        for region in ram.regions() {
            if end == Some(region.gpa) {
                borders.push(region.gpa);
            }
            end = region.gpa.checked_add(region.len);
        }
        Self { ram: ram.clone(), table, size, indirect, borders: borders.into() }
    }

    /// Copies the chain that starts at `head` and checks it.
    pub(super) fn chain(&self, head: u16, position: u16) -> Result<Chain, ChainError> {
        let mut draft = Draft::default();
        if let Some(table) = self.direct(head, &mut draft)? {
            self.follow_table(&table, &mut draft)?;
        }
        Ok(Chain::new(head, position, draft.ranges, draft.readable))
    }

    /// Follows the queue's own table; gives the indirect table if the chain ends in one.
    fn direct(&self, head: u16, draft: &mut Draft) -> Result<Option<Table>, ChainError> {
        let mut seen = Seen::default();
        let mut index = head;
        loop {
            seen.visit(index, self.size)?;
            let found = self.read(index)?;
            if found.has(descriptor::INDIRECT) {
                return self.read_table(index, found).map(Some);
            }
            self.add(draft, index, found)?;
            if !found.has(descriptor::NEXT) {
                return Ok(None);
            }
            index = found.next;
        }
    }

    fn follow_table(&self, table: &[u8], draft: &mut Draft) -> Result<(), ChainError> {
        let (table, _) = table.as_chunks::<{ Descriptor::LEN }>();
        // At most MAX_QUEUE_SIZE, as `read_table` checked.
        let size = u16::try_from(table.len()).unwrap_or(MAX_QUEUE_SIZE);
        let mut seen = Seen::default();
        let mut index = 0;
        loop {
            seen.visit(index, size)?;
            let bytes = table.get(usize::from(index)).ok_or(ChainError::Index { index, size })?;
            let found = Descriptor::parse(*bytes);
            if found.has(descriptor::INDIRECT) {
                return Err(ChainError::Nested { index });
            }
            self.add(draft, index, found)?;
            if !found.has(descriptor::NEXT) {
                return Ok(());
            }
            index = found.next;
        }
    }

    /// Copies a descriptor of the queue's own table.
    fn read(&self, index: u16) -> Result<Descriptor, ChainError> {
        let mut bytes = [0; Descriptor::LEN];
        let gpa = self.table.saturating_add(u64::from(index) * u64::from(DESCRIPTOR_LEN));
        let outside = ChainError::NotInRam { index, gpa, len: DESCRIPTOR_LEN };
        self.ram.read(gpa, &mut bytes).map_err(|_| outside)?;
        Ok(Descriptor::parse(bytes))
    }

    /// Copies the indirect table that a descriptor points to.
    fn read_table(&self, index: u16, found: Descriptor) -> Result<Table, ChainError> {
        let Descriptor { addr: gpa, len, .. } = found;
        if !self.indirect {
            return Err(ChainError::NotNegotiated { index });
        }
        if found.has(descriptor::NEXT) {
            return Err(ChainError::IndirectNext { index });
        }
        let longest = u32::from(MAX_QUEUE_SIZE) * DESCRIPTOR_LEN;
        if len == 0 || len % DESCRIPTOR_LEN != 0 || len > longest {
            return Err(ChainError::TableLen { len });
        }
        let mut table: Table = smallvec![0; usize::try_from(len).unwrap_or(0)];
        self.ram.read(gpa, &mut table).map_err(|_| ChainError::NotInRam { index, gpa, len })?;
        Ok(table)
    }

    /// Adds a buffer to the chain, if the chain then still is one.
    fn add(&self, draft: &mut Draft, index: u16, found: Descriptor) -> Result<(), ChainError> {
        let Descriptor { addr: gpa, len, .. } = found;
        if draft.ranges.len() >= usize::from(self.size) {
            return Err(ChainError::TooLong { size: self.size });
        }
        if len == 0 {
            return Err(ChainError::Empty { index });
        }
        if !self.ram.contains(gpa, u64::from(len)) {
            return Err(ChainError::NotInRam { index, gpa, len });
        }
        if !found.has(descriptor::WRITE) {
            if draft.readable < draft.ranges.len() {
                return Err(ChainError::Order { index });
            }
            draft.readable += 1;
        }
        draft.total = draft.total.checked_add(len).ok_or(ChainError::TooLarge)?;
        draft.pieces = draft.pieces.saturating_add(self.pieces(gpa, len));
        if draft.pieces > MAX_PIECES {
            return Err(ChainError::TooManyPieces);
        }
        draft.ranges.push(GuestRange { gpa, len });
        Ok(())
    }

    /// Into how many pieces the borders of RAM regions cut a buffer.
    fn pieces(&self, gpa: u64, len: u32) -> usize {
        let inside = |border: &&u64| **border > gpa && **border - gpa < u64::from(len);
        1 + self.borders.iter().filter(inside).count()
    }
}

/// A chain in the making.
#[derive(Debug, Default)]
struct Draft {
    ranges: Ranges,
    readable: usize,
    total: u32,
    pieces: usize,
}

/// Which descriptors of a table the chain has come by.
#[derive(Debug, Default)]
struct Seen([u64; MAX_QUEUE_SIZE as usize / 64]);

impl Seen {
    /// Comes by `index` of a table of `size`, for the first time.
    fn visit(&mut self, index: u16, size: u16) -> Result<(), ChainError> {
        let outside = ChainError::Index { index, size };
        if index >= size {
            return Err(outside);
        }
        let word = self.0.get_mut(usize::from(index / 64)).ok_or(outside)?;
        let bit = 1 << (index % 64);
        if *word & bit != 0 {
            return Err(ChainError::Loop { index });
        }
        *word |= bit;
        Ok(())
    }
}

#[cfg(test)]
#[path = "walk_test.rs"]
mod tests;
