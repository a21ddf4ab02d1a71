//! What this process and this machine use: memory by kind, and CPU time. Reads `/proc`, changes nothing.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The memfd behind guest RAM, as mappings show it.
const GUEST_RAM: &str = "/memfd:ringlet-ram";
/// The pages that KVM shares with user space for each vCPU.
const VCPU: &str = "anon_inode:kvm-vcpu";

/// Memory of a process in bytes, from `/proc/self/smaps` (proc(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// Private pages of the program break's heap.
    pub(super) heap: u64,
    /// Private pages of anonymous mappings: thread stacks, the allocator's arenas, rings.
    pub(super) anonymous: u64,
    /// Private pages of everything else, the program's own among them; without guest RAM and vCPUs.
    pub(super) other: u64,
    /// Resident pages of guest RAM.
    pub(super) guest_ram: u64,
    /// Resident pages that KVM shares with user space; the kernel's, not ours.
    pub(super) vcpu: u64,
}

impl Memory {
    /// What the process has now.
    pub(super) fn of_this_process() -> io::Result<Self> {
        Self::parse(BufReader::with_capacity(64 << 10, File::open("/proc/self/smaps")?))
    }

    /// What only this process uses, in user space and without guest RAM.
    pub(super) fn private(&self) -> u64 {
        self.heap + self.anonymous + self.other
    }

    /// What there is more than `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            heap: self.heap.saturating_sub(before.heap),
            anonymous: self.anonymous.saturating_sub(before.anonymous),
            other: self.other.saturating_sub(before.other),
            guest_ram: self.guest_ram.saturating_sub(before.guest_ram),
            vcpu: self.vcpu.saturating_sub(before.vcpu),
        }
    }

    fn parse(mut smaps: impl BufRead) -> io::Result<Self> {
        let mut memory = Self::default();
        let (mut kind, mut line) = (Kind::Other, String::with_capacity(256));
        loop {
            line.clear();
            if smaps.read_line(&mut line)? == 0 {
                return Ok(memory);
            }
            match field(&line) {
                Some(("Private_Clean" | "Private_Dirty" | "Private_Hugetlb", bytes)) => match kind {
                    Kind::Heap => memory.heap += bytes,
                    Kind::Anonymous => memory.anonymous += bytes,
                    Kind::Other => memory.other += bytes,
                    Kind::GuestRam | Kind::Vcpu => {}
                },
                Some(("Rss", bytes)) if kind == Kind::GuestRam => memory.guest_ram += bytes,
                Some(("Rss", bytes)) if kind == Kind::Vcpu => memory.vcpu += bytes,
                Some(_) => {}
                None if is_header(&line) => kind = Kind::of(&line),
                None => {}
            }
        }
    }
}

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Heap,
    Anonymous,
    GuestRam,
    Vcpu,
    Other,
}

impl Kind {
    /// From a mapping's first line, whose sixth field is its name.
    fn of(header: &str) -> Self {
        match header.split_whitespace().nth(5) {
            None => Self::Anonymous,
            Some("[heap]") => Self::Heap,
            Some(name) if name.starts_with(GUEST_RAM) => Self::GuestRam,
            Some(name) if name.starts_with(VCPU) => Self::Vcpu,
            Some(name) if name.starts_with("[anon") || name.starts_with("[stack") => Self::Anonymous,
            Some(_) => Self::Other,
        }
    }
}

/// `start-end perms …`, as opposed to `Name: value`.
fn is_header(line: &str) -> bool {
    line.split_whitespace().next().is_some_and(|word| word.contains('-'))
}

/// Name and bytes of a line `Name:  123 kB`.
fn field(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((name, kib * 1024))
}

/// A line of `/proc/meminfo` in bytes; 0 if there is none.
pub(super) fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines().filter_map(field).find(|(field, _)| *field == name).map_or(0, |(_, bytes)| bytes)
}

/// CPU time of all threads of this process so far, in user space, kernel and guests.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// CPU time of all threads of the processes that this one has waited for, in user space, kernel and guests.
pub(super) fn cpu_time_of_children() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(microseconds.try_into().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 08:01 123        /usr/bin/ringlet
Size:               1024 kB
Rss:                 900 kB
Private_Clean:        40 kB
Private_Dirty:         8 kB
VmFlags: rd ex mr mw me
01000000-01021000 rw-p 00000000 00:00 0          [heap]
Private_Dirty:        64 kB
7f0000000000-7f0008000000 rw-s 00000000 00:01 5  /memfd:ringlet-ram (deleted)
Rss:                 100 kB
Private_Dirty:       100 kB
7f0010000000-7f0010003000 rw-s 00000000 00:0e 7  anon_inode:kvm-vcpu:0
Rss:                  12 kB
Private_Dirty:        12 kB
7f0020000000-7f0020030000 rw-p 00000000 00:00 0
Private_Clean:         4 kB
Private_Dirty:        16 kB
Private_Hugetlb:       0 kB
";

    #[test]
    fn mappings_are_told_apart() {
        let memory = Memory::parse(SMAPS.as_bytes()).unwrap();
        let kib = |n: u64| n << 10;
        let expected =
            Memory { heap: kib(64), anonymous: kib(20), other: kib(48), guest_ram: kib(100), vcpu: kib(12) };
        assert_eq!(memory, expected);
        assert_eq!(memory.private(), kib(132));
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        assert!(Memory::of_this_process().unwrap().private() > 0);
        assert!(meminfo("MemTotal") >= meminfo("MemAvailable"));
        assert_eq!(meminfo("Nonesuch"), 0);
        assert!(cpu_time() > Duration::ZERO);
    }

    #[test]
    fn the_time_of_a_child_counts_when_it_was_waited_for() {
        let before = cpu_time_of_children().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"])
            .spawn()
            .unwrap();
        assert!(child.wait().unwrap().success());
        assert!(cpu_time_of_children().unwrap() > before);
    }
}
