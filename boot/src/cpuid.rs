//! What a guest sees when it executes CPUID.
//!
//! A policy over the leaves that KVM_GET_SUPPORTED_CPUID reported: topology (one socket, one thread a core), the
//! local APIC's features, a timing leaf so that a guest need not calibrate, and the removal of what a backend
//! cannot run. Not a security boundary: PVM ignores a part of the masks, so a guest may execute what is hidden.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What runs guest code underneath KVM's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Intel VT-x (`kvm_intel`).
    Vmx,
    /// AMD SVM (`kvm_amd`).
    Svm,
    /// Software virtualization (`kvm_pvm`): guest ring 0 is emulated.
    Pvm,
    /// Could not be found out; treated like hardware.
    Unknown,
}

/// What the policy needs to know about one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidContext {
    /// APIC id, from 0; below `vcpus`.
    pub vcpu_id: u32,
    /// vCPUs of the VM, at least 1.
    pub vcpus: u32,
    /// TSC frequency in kHz (KVM_GET_TSC_KHZ); 0 if unknown, which leaves timing leaves as they are.
    pub tsc_khz: u32,
    /// The backend.
    pub backend: Backend,
}

/// Frequency of KVM's local APIC timer in kHz: it counts nanoseconds.
pub const APIC_BUS_KHZ: u32 = 1_000_000;
/// Hypervisor leaf with the TSC frequency (EAX) and the APIC timer's (EBX), both in kHz.
pub const TIMING_LEAF: u32 = 0x4000_0010;

const HYPERVISOR_LEAF: u32 = 0x4000_0000;

const EDX1_HTT: u32 = 1 << 28;
const ECX1_X2APIC: u32 = 1 << 21;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;

/// Applies the policy to the leaves of one vCPU, in place. The result goes to KVM_SET_CPUID2.
pub fn apply(entries: &mut Vec<kvm_cpuid_entry2>, context: &CpuidContext) {
    let vendor = Vendor::of(entries);
    set_basics(entries, context);
    set_topology(entries, context);
    match vendor {
        Vendor::Amd => set_amd_topology(entries, context),
        Vendor::Other => set_cache_sharing(entries, 4, context),
    }
    // No performance counters: they are not virtualized everywhere, and they watch the host.
    clear_leaf(entries, 0xA);
    if context.backend == Backend::Pvm {
        hide_unemulated(entries);
    }
    if context.tsc_khz != 0 {
        set_timing(entries, context.tsc_khz);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Amd,
    Other,
}

impl Vendor {
    fn of(entries: &[kvm_cpuid_entry2]) -> Self {
        let name = leaf(entries, 0).map(|e| [e.ebx, e.edx, e.ecx].map(u32::to_le_bytes).concat());
        match name.as_deref() {
            Some(b"AuthenticAMD" | b"HygonGenuine") => Self::Amd,
            _ => Self::Other,
        }
    }
}

fn leaf(entries: &[kvm_cpuid_entry2], function: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| entry.function == function)
}

/// Every entry (sub-leaf) of `function`.
fn each(entries: &mut [kvm_cpuid_entry2], function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
    entries.iter_mut().filter(move |entry| entry.function == function)
}

fn clear_leaf(entries: &mut [kvm_cpuid_entry2], function: u32) {
    for entry in each(entries, function) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    }
}

fn set_basics(entries: &mut [kvm_cpuid_entry2], context: &CpuidContext) {
    for entry in each(entries, 1) {
        // Bits 23:16 count logical processors (8 bits), bits 31:24 are the initial APIC id.
        let logical = context.vcpus.min(0xFF);
        entry.ebx = entry.ebx & 0xFFFF | logical << 16 | (context.vcpu_id & 0xFF) << 24;
        entry.ecx |= ECX1_HYPERVISOR | ECX1_X2APIC | ECX1_TSC_DEADLINE;
        entry.edx = if context.vcpus > 1 { entry.edx | EDX1_HTT } else { entry.edx & !EDX1_HTT };
    }
}

/// Bits of an APIC id that number the cores of the one socket.
fn id_bits(vcpus: u32) -> u32 {
    u32::BITS - vcpus.saturating_sub(1).leading_zeros()
}

/// Rewrites the extended topology leaves 0xB and, if the CPU has it, 0x1F (Intel SDM volume 2, CPUID).
fn set_topology(entries: &mut Vec<kvm_cpuid_entry2>, context: &CpuidContext) {
    let max_leaf = leaf(entries, 0).map_or(0, |entry| entry.eax);
    for function in [0xB, 0x1F] {
        entries.retain(|entry| entry.function != function);
        if max_leaf < function {
            continue;
        }
        // (sub-leaf, shift to the next level's id, processors at this level, level type)
        let levels = [(0, 0, 1, 1), (1, id_bits(context.vcpus), context.vcpus, 2), (2, 0, 0, 0)];
        entries.extend(levels.map(|(index, shift, count, kind)| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | kind << 8,
            edx: context.vcpu_id,
            ..Default::default()
        }));
    }
}

/// Caches of level 1 and 2 belong to one core, level 3 to all (leaf 4 of Intel, 0x8000_001D of AMD).
fn set_cache_sharing(entries: &mut [kvm_cpuid_entry2], function: u32, context: &CpuidContext) {
    let ids = (1u32 << id_bits(context.vcpus).min(12)) - 1;
    for entry in each(entries, function) {
        if entry.eax & 0x1F == 0 {
            continue;
        }
        let level = entry.eax >> 5 & 7;
        let sharing = if level >= 3 { ids } else { 0 };
        entry.eax = entry.eax & !(0xFFF << 14) | sharing << 14;
        if function == 4 {
            entry.eax = entry.eax & !(0x3F << 26) | ids.min(0x3F) << 26;
        }
    }
}

/// AMD's own topology leaves (AMD APM volume 3, appendix E).
fn set_amd_topology(entries: &mut [kvm_cpuid_entry2], context: &CpuidContext) {
    for entry in each(entries, 0x8000_0008) {
        let cores = context.vcpus.saturating_sub(1).min(0xFF);
        entry.ecx = entry.ecx & !0xF0FF | cores | id_bits(context.vcpus).min(0xF) << 12;
    }
    for entry in each(entries, 0x8000_0001) {
        let legacy = 1 << 1;
        entry.ecx = if context.vcpus > 1 { entry.ecx | legacy } else { entry.ecx & !legacy };
    }
    for entry in each(entries, 0x8000_001E) {
        (entry.eax, entry.ebx, entry.ecx) = (context.vcpu_id, context.vcpu_id & 0xFF, 0);
    }
    set_cache_sharing(entries, 0x8000_001D, context);
}

/// Adds the hypervisor timing leaf, and fills leaf 0x15 if the CPU has it.
fn set_timing(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    entries.retain(|entry| entry.function != TIMING_LEAF);
    for entry in each(entries, HYPERVISOR_LEAF) {
        // Its EAX is the last hypervisor leaf.
        entry.eax = entry.eax.max(TIMING_LEAF);
    }
    if leaf(entries, HYPERVISOR_LEAF).is_some() {
        entries.push(kvm_cpuid_entry2 {
            function: TIMING_LEAF,
            eax: tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    if leaf(entries, 0).is_some_and(|entry| entry.eax >= 0x15) {
        entries.retain(|entry| entry.function != 0x15);
        // TSC Hz = crystal Hz (ECX) * EBX / EAX; the crystal also clocks the APIC timer.
        entries.push(kvm_cpuid_entry2 {
            function: 0x15,
            eax: APIC_BUS_KHZ,
            ebx: tsc_khz,
            ecx: APIC_BUS_KHZ * 1000,
            ..Default::default()
        });
    }
}

/// Features that PVM's emulated ring 0 lacks, with the leaf, sub-leaf and register that announce them.
fn hide_unemulated(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries.iter_mut() {
        match (entry.function, entry.index) {
            (1, _) => entry.ecx &= !pvm::ECX1,
            (7, 0) => {
                entry.ebx &= !pvm::EBX7;
                entry.ecx &= !pvm::ECX7;
                entry.edx &= !pvm::EDX7;
            }
            (7, _) => entry.eax &= !pvm::EAX7_1,
            (0x8000_0001, _) => {
                entry.ecx &= !pvm::ECX_EXT1;
                entry.edx &= !pvm::EDX_EXT1;
            }
            _ => {}
        }
    }
    for function in [0xD, 0x14, 0x1D, 0x1E] {
        clear_leaf(entries, function);
    }
}

mod pvm {
    const fn bits(list: &[u32]) -> u32 {
        let mut mask = 0;
        let mut rest = list;
        while let [bit, tail @ ..] = rest {
            mask |= 1 << *bit;
            rest = tail;
        }
        mask
    }

    /// FMA, CMPXCHG16B, PCID, POPCNT, XSAVE, OSXSAVE, AVX, F16C.
    pub(super) const ECX1: u32 = bits(&[12, 13, 17, 23, 26, 27, 28, 29]);
    /// AVX2, INVPCID, MPX, AVX-512 (F, DQ, IFMA, PF, ER, CD, BW, VL), SMAP, processor trace.
    pub(super) const EBX7: u32 = bits(&[5, 10, 14, 16, 17, 20, 21, 25, 26, 27, 28, 30, 31]);
    /// AVX-512 (VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ), PKU, OSPKE, WAITPKG, CET-SS, VAES, VPCLMULQDQ, LA57.
    pub(super) const ECX7: u32 = bits(&[1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 16]);
    /// AVX-512 (4VNNIW, 4FMAPS, VP2INTERSECT, FP16), UINTR, CET-IBT, AMX (BF16, TILE, INT8).
    pub(super) const EDX7: u32 = bits(&[2, 3, 5, 8, 20, 22, 23, 24, 25]);
    /// Sub-leaf 1: AVX-VNNI, AVX512-BF16, FRED, AMX-FP16, AVX-IFMA.
    pub(super) const EAX7_1: u32 = bits(&[4, 5, 17, 21, 23]);
    /// XOP, LWP, FMA4.
    pub(super) const ECX_EXT1: u32 = bits(&[11, 15, 16]);
    /// 1 GiB pages.
    pub(super) const EDX_EXT1: u32 = bits(&[26]);
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
