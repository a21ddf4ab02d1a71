use super::*;

#[test]
fn the_backend_is_told_by_the_modules_and_the_processor() {
    use Virtualization::{None, Svm, Vmx};
    let cases: [(&[&str], Virtualization, Backend); 8] = [
        (&["kvm"], Vmx, Backend::Unknown),
        (&["kvm", "kvm_intel"], Vmx, Backend::Vmx),
        (&["kvm", "kvm_amd"], Svm, Backend::Svm),
        (&["kvm", "kvm_intel", "kvm_amd"], Svm, Backend::Svm),
        (&["kvm", "kvm_intel", "kvm_pvm"], Vmx, Backend::Vmx),
        (&["kvm", "kvm_intel", "kvm_pvm"], None, Backend::Pvm),
        (&["kvm", "kvm_pvm"], Svm, Backend::Pvm),
        (&["kvm", "kvm_intel"], None, Backend::Unknown),
    ];
    for (names, processor, expected) in cases {
        let modules = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::create_dir(modules.path().join(name)).unwrap());
        assert_eq!(backend(modules.path(), processor), expected, "{names:?} on {processor:?}");
    }
}

#[test]
fn the_probe_finds_what_a_vm_needs() {
    let host = Host::open().expect("/dev/kvm must be usable to test Ringlet; see `ringlet check`");
    assert!(host.max_vcpus >= 1);
    assert!(host.supported_cpuid().unwrap().as_slice().iter().any(|leaf| leaf.function == 1));
}
