use super::*;

#[test]
fn the_backend_is_told_by_the_loaded_module() {
    let modules = tempfile::tempdir().unwrap();
    assert_eq!(backend(modules.path()), Backend::Unknown);
    for (module, expected) in
        [("kvm_amd", Backend::Svm), ("kvm_intel", Backend::Vmx), ("kvm_pvm", Backend::Pvm)]
    {
        std::fs::create_dir(modules.path().join(module)).unwrap();
        assert_eq!(backend(modules.path()), expected);
    }
}

#[test]
fn the_probe_finds_what_a_vm_needs() {
    let host = Host::open().expect("/dev/kvm must be usable to test Ringlet; see `ringlet check`");
    assert!(host.max_vcpus >= 1);
    assert!(host.supported_cpuid().unwrap().as_slice().iter().any(|leaf| leaf.function == 1));
}
