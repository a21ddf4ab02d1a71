use super::*;

fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = regs;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

const INTEL: [u32; 4] = [0x1F, 0x756E_6547, 0x6C65_746E, 0x4965_6E69];
const AMD: [u32; 4] = [0x1C, 0x6874_7541, 0x444D_4163, 0x6974_6E65];

/// A CPU of the given vendor with every feature bit set.
fn host(vendor: [u32; 4]) -> Vec<kvm_cpuid_entry2> {
    let full = [u32::MAX; 4];
    vec![
        entry(0, 0, vendor),
        entry(1, 0, [0x306C3, 0x0A10_0800, !(1 << 31), u32::MAX]),
        entry(4, 0, [0x1C00_4121, 1, 2, 3]),
        entry(4, 3, [0xFC00_4163, 1, 2, 3]),
        entry(4, 4, [0; 4]),
        entry(7, 0, [1, u32::MAX, u32::MAX, u32::MAX]),
        entry(7, 1, full),
        entry(0xA, 0, full),
        entry(0xB, 0, full),
        entry(0xD, 0, full),
        entry(0xD, 1, full),
        entry(0x15, 0, [0; 4]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]),
        entry(0x4000_0001, 0, [0x0100_7EFB, 0, 0, 0]),
        entry(0x8000_0001, 0, full),
        entry(0x8000_0008, 0, [0x3030, 0, 0x7F3F, 0]),
        entry(0x8000_001D, 3, [0x4163, 1, 2, 3]),
        entry(0x8000_001E, 0, full),
    ]
}

fn applied(vendor: [u32; 4], context: CpuidContext) -> Vec<kvm_cpuid_entry2> {
    let mut entries = host(vendor);
    apply(&mut entries, &context);
    entries
}

fn context(vcpu_id: u32, vcpus: u32) -> CpuidContext {
    CpuidContext { vcpu_id, vcpus, tsc_khz: 2_600_000, backend: Backend::Vmx }
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let mut found = entries.iter().filter(|e| e.function == function && e.index == index);
    let entry = found.next().unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

#[test]
fn each_vcpu_has_its_apic_id_and_the_count() {
    for (id, vcpus) in [(0, 1), (1, 2), (2, 3), (253, 254)] {
        let entries = applied(INTEL, context(id, vcpus));
        let [_, ebx, ecx, edx] = find(&entries, 1, 0);
        assert_eq!((ebx >> 24, ebx >> 16 & 0xFF, ebx & 0xFFFF), (id, vcpus, 0x800));
        assert_eq!(edx & EDX1_HTT != 0, vcpus > 1);
        assert_eq!(
            ecx & (ECX1_HYPERVISOR | ECX1_X2APIC | ECX1_TSC_DEADLINE),
            ECX1_HYPERVISOR | ECX1_X2APIC | ECX1_TSC_DEADLINE
        );
    }
}

#[test]
fn extended_topology_is_one_socket_of_cores() {
    for (id, vcpus, bits) in [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 2), (4, 5, 3)] {
        let entries = applied(INTEL, context(id, vcpus));
        for function in [0xB, 0x1F] {
            assert_eq!(find(&entries, function, 0), [0, 1, 0x100, id]);
            assert_eq!(find(&entries, function, 1), [bits, vcpus, 0x201, id]);
            assert_eq!(find(&entries, function, 2), [0, 0, 2, id]);
        }
        assert!(
            entries.iter().filter(|e| e.function == 0xB).all(|e| e.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
        );
    }
    let amd = applied(AMD, context(1, 2));
    assert!(!amd.iter().any(|e| e.function == 0x1F), "this CPU's last leaf is 0x1C");
}

#[test]
fn caches_below_level_3_belong_to_one_core() {
    let entries = applied(INTEL, context(0, 3));
    let [l1, ..] = find(&entries, 4, 0);
    let [l3, ..] = find(&entries, 4, 3);
    assert_eq!((l1 >> 14 & 0xFFF, l3 >> 14 & 0xFFF), (0, 3));
    assert_eq!((l1 >> 26, l3 >> 26), (3, 3));
    assert_eq!((l1 & 0x3FFF, l3 & 0x3FFF), (0x121, 0x163), "the rest stays");
    assert_eq!(find(&entries, 4, 4), [0; 4]);
}

#[test]
fn amd_has_its_own_topology() {
    let entries = applied(AMD, context(2, 3));
    let [_, _, ecx, _] = find(&entries, 0x8000_0008, 0);
    assert_eq!((ecx & 0xFF, ecx >> 12 & 0xF), (2, 2));
    assert_eq!(find(&entries, 0x8000_001E, 0)[..3], [2, 2, 0]);
    assert_eq!(find(&entries, 0x8000_001D, 3)[0] >> 14 & 0xFFF, 3);
    let alone = applied(AMD, context(0, 1));
    assert_eq!(find(&alone, 0x8000_0001, 0)[2] & 2, 0, "CmpLegacy");
}

#[test]
fn guests_need_not_calibrate() {
    let entries = applied(INTEL, context(0, 1));
    assert_eq!(find(&entries, 0x4000_0000, 0)[0], 0x4000_0010);
    assert_eq!(find(&entries, 0x4000_0010, 0), [2_600_000, 1_000_000, 0, 0]);
    let [denominator, numerator, crystal_hz, _] = find(&entries, 0x15, 0).map(u64::from);
    assert_eq!(crystal_hz * numerator / denominator, 2_600_000_000);
    assert_eq!(crystal_hz, 1_000_000_000, "the crystal is the APIC timer's clock");
}

#[test]
fn an_unknown_frequency_adds_nothing() {
    let entries = applied(INTEL, CpuidContext { tsc_khz: 0, ..context(0, 1) });
    assert_eq!(find(&entries, 0x4000_0000, 0)[0], 0x4000_0001);
    assert!(!entries.iter().any(|e| e.function == TIMING_LEAF));
    assert_eq!(find(&entries, 0x15, 0), [0; 4]);
}

#[test]
fn pvm_guests_do_not_see_what_ring_0_cannot_do() {
    let entries = applied(AMD, CpuidContext { backend: Backend::Pvm, ..context(0, 1) });
    let [_, _, ecx1, _] = find(&entries, 1, 0);
    for (bit, name) in
        [(13, "cmpxchg16b"), (17, "pcid"), (23, "popcnt"), (26, "xsave"), (27, "osxsave"), (28, "avx")]
    {
        assert_eq!(ecx1 >> bit & 1, 0, "{name}");
    }
    let [_, ebx7, ..] = find(&entries, 7, 0);
    for (bit, name) in [(5, "avx2"), (10, "invpcid"), (16, "avx512f"), (20, "smap")] {
        assert_eq!(ebx7 >> bit & 1, 0, "{name}");
    }
    assert_eq!(ebx7 >> 9 & 1, 1, "what works stays");
    assert_eq!((find(&entries, 0xD, 0), find(&entries, 0xD, 1)), ([0; 4], [0; 4]));
    let [_, _, _, edx] = find(&entries, 0x8000_0001, 0);
    assert_eq!((edx >> 26 & 1, edx >> 29 & 1), (0, 1), "1 GiB pages are hidden, long mode is not");
}

#[test]
fn hardware_keeps_its_features() {
    for backend in [Backend::Vmx, Backend::Svm, Backend::Unknown] {
        let entries = applied(INTEL, CpuidContext { backend, ..context(0, 1) });
        assert_eq!(find(&entries, 7, 0)[1], u32::MAX);
        assert_eq!(find(&entries, 1, 0)[2], u32::MAX);
        assert_eq!(find(&entries, 0xD, 0), [u32::MAX; 4]);
        assert_eq!(find(&entries, 0xA, 0), [0; 4], "no performance counters");
    }
}

#[test]
fn sec_06_odd_tables_are_no_problem() {
    for odd in [vec![], vec![entry(4, 0, [u32::MAX; 4])], vec![entry(0, 0, [u32::MAX; 4]); 3]] {
        for (vcpu_id, vcpus) in [(0, 0), (u32::MAX, u32::MAX), (7, 1)] {
            for backend in [Backend::Pvm, Backend::Unknown] {
                apply(&mut odd.clone(), &CpuidContext { vcpu_id, vcpus, tsc_khz: u32::MAX, backend });
            }
        }
    }
}

#[test]
fn applying_twice_changes_nothing() {
    let context = CpuidContext { backend: Backend::Pvm, ..context(1, 2) };
    let once = applied(INTEL, context);
    let mut twice = once.clone();
    apply(&mut twice, &context);
    let key = |e: &kvm_cpuid_entry2| (e.function, e.index, e.eax, e.ebx, e.ecx, e.edx);
    let sorted = |entries: &[kvm_cpuid_entry2]| {
        let mut keys: Vec<_> = entries.iter().map(key).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(sorted(&once), sorted(&twice));
}
