//! Time: kvm-clock where there is one, else the time-stamp counter at the frequency that CPUID tells, or that the local
//! APIC's timer shows.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use crate::interrupts::TIMER_VECTOR;
use crate::layout::MAX_CPUS;
use crate::{cpu, interrupts, lapic, percpu};

const NANOSECONDS: u64 = 1_000_000_000;
/// MSR of the per-processor clock page (Documentation/virt/kvm/x86/msr.rst).
const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;

/// `pvclock_vcpu_time_info`, written by the hypervisor.
#[repr(C, align(32))]
struct ClockPage {
    version: u32,
    padding: u32,
    tsc_timestamp: u64,
    system_time: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    reserved: [u8; 2],
}

struct Clocks(UnsafeCell<[ClockPage; MAX_CPUS]>);

// SAFETY: each element is written by the hypervisor for one processor, and read volatile.
unsafe impl Sync for Clocks {}

// SAFETY: all fields are integers, for which zero is a value.
static CLOCKS: Clocks = Clocks(UnsafeCell::new(unsafe { core::mem::zeroed() }));
/// 0 unknown, 1 the TSC, else the base leaf of KVM's CPUID.
static SOURCE: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(0);

/// What [`now`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The hypervisor's clock page.
    KvmClock,
    /// The time-stamp counter.
    Tsc,
}

/// What [`now`] reads here.
#[must_use]
pub fn source() -> Source {
    let mut known = SOURCE.load(Ordering::Relaxed);
    if known == 0 {
        known = find_kvm().map_or(1, u64::from);
        SOURCE.store(known, Ordering::Relaxed);
    }
    if known == 1 { Source::Tsc } else { Source::KvmClock }
}

/// The base of KVM's CPUID leaves, if it has the clock.
fn find_kvm() -> Option<u32> {
    let has_hypervisor = cpu::cpuid(1, 0).ecx & 1 << 31 != 0;
    let base =
        (0x4000_0000..0x4001_0000).step_by(0x100).take(if has_hypervisor { 4 } else { 0 }).find(|&leaf| {
            let answer = cpu::cpuid(leaf, 0);
            [answer.ebx, answer.ecx, answer.edx] == [0x4b4d_564b, 0x564b_4d56, 0x4d]
        })?;
    (cpu::cpuid(base + 1, 0).eax & KVM_FEATURE_CLOCKSOURCE2 != 0).then_some(base)
}

/// Nanoseconds since some moment in the past, near the machine's start; never goes back on one processor.
#[must_use]
pub fn now() -> u64 {
    match source() {
        Source::KvmClock => {
            let clock = read_clock();
            clock.system_time + scale(&clock, cpu::rdtsc().saturating_sub(clock.tsc_timestamp))
        }
        Source::Tsc => (u128::from(cpu::rdtsc()) * u128::from(NANOSECONDS) / u128::from(tsc_hz())) as u64,
    }
}

/// Ticks of the time-stamp counter per second, as far as anybody tells.
#[must_use]
pub fn tsc_hz() -> u64 {
    let known = TSC_HZ.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let hz = match source() {
        Source::KvmClock => {
            let clock = read_clock();
            let per_second = (u128::from(NANOSECONDS) << 32) / u128::from(clock.multiplier.max(1));
            (if clock.shift < 0 { per_second << -clock.shift } else { per_second >> clock.shift }) as u64
        }
        Source::Tsc => hz_by_cpuid().unwrap_or_else(hz_by_apic),
    };
    TSC_HZ.store(hz.max(1), Ordering::Relaxed);
    hz.max(1)
}

/// Spins for `nanoseconds`.
pub fn spin(nanoseconds: u64) {
    let start = now();
    while now() - start < nanoseconds {
        core::hint::spin_loop();
    }
}

/// Sleeps for at least `nanoseconds`, halted.
pub fn sleep(nanoseconds: u64) {
    let end = now() + nanoseconds;
    loop {
        let left = end.saturating_sub(now());
        if left == 0 {
            return;
        }
        let _ = interrupts::take(TIMER_VECTOR);
        lapic::arm_timer(left);
        interrupts::wait();
    }
}

/// Ticks at `hz` in `nanoseconds`.
pub(crate) fn ticks(nanoseconds: u64, hz: u64) -> u64 {
    (u128::from(nanoseconds) * u128::from(hz) / u128::from(NANOSECONDS)) as u64
}

/// A consistent copy of this processor's clock page, registered at the first use.
fn read_clock() -> ClockPage {
    let page = CLOCKS.0.get().cast::<ClockPage>().wrapping_add(cpu::index());
    if !percpu::clock_registered() {
        // SAFETY: the hypervisor writes 32 bytes to this processor's own page from now on.
        let _ = unsafe { cpu::wrmsr(KVM_SYSTEM_TIME_NEW, page.expose_provenance() as u64 | 1) };
    }
    loop {
        // SAFETY: an element of the array, read volatile because the hypervisor changes it.
        let copy = unsafe { page.read_volatile() };
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above.
        let version = unsafe { (&raw const (*page).version).read_volatile() };
        if version == copy.version && version & 1 == 0 {
            return copy;
        }
    }
}

/// TSC ticks to nanoseconds, as the clock page says.
fn scale(clock: &ClockPage, ticks: u64) -> u64 {
    let shifted = if clock.shift < 0 { ticks >> -clock.shift } else { ticks << clock.shift };
    ((u128::from(shifted) * u128::from(clock.multiplier)) >> 32) as u64
}

/// Leaf 0x4000_0010 (kHz, hypervisors), leaf 0x15 (crystal ratio), leaf 0x16 (MHz).
fn hz_by_cpuid() -> Option<u64> {
    let hypervisor = cpu::cpuid(0x4000_0000, 0).eax;
    if (0x4000_0010..0x4001_0000).contains(&hypervisor) {
        let khz = cpu::cpuid(0x4000_0010, 0).eax;
        if khz != 0 {
            return Some(u64::from(khz) * 1000);
        }
    }
    let max = cpu::cpuid(0, 0).eax;
    if max >= 0x15 {
        let ratio = cpu::cpuid(0x15, 0);
        if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
            return Some(u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax));
        }
    }
    (max >= 0x16).then(|| u64::from(cpu::cpuid(0x16, 0).eax & 0xffff) * 1_000_000).filter(|&hz| hz != 0)
}

/// Measures the TSC against the local APIC's timer for 10 ms.
fn hz_by_apic() -> u64 {
    const MEASURE: u64 = NANOSECONDS / 100;
    let start = cpu::rdtsc();
    let counted = lapic::count(ticks(MEASURE, lapic::TIMER_HZ) as u32);
    let elapsed = cpu::rdtsc() - start;
    (u128::from(elapsed) * u128::from(lapic::TIMER_HZ) / u128::from(counted)) as u64
}
