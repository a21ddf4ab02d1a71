use super::*;
use crate::check::facts::OpenError;
use crate::kvm::Virtualization;

const INTEL: Cpu = Cpu { virtualization: Virtualization::Vmx, hypervisor: false };
const AMD: Cpu = Cpu { virtualization: Virtualization::Svm, hypervisor: false };
const CLOUD: Cpu = Cpu { virtualization: Virtualization::None, hypervisor: true };

fn host(modules: &[&str]) -> (tempfile::TempDir, Files) {
    let root = tempfile::tempdir().unwrap();
    for module in modules {
        std::fs::create_dir_all(root.path().join("sys/module").join(module).join("parameters")).unwrap();
    }
    let files = Files::new(root.path());
    (root, files)
}

#[test]
fn errors_of_opening_are_told_apart() {
    assert_eq!(open_error(libc::ENOENT), OpenError::Absent);
    assert_eq!(open_error(libc::ENODEV), OpenError::Absent);
    assert_eq!(open_error(libc::EACCES), OpenError::Denied);
    assert!(matches!(open_error(libc::EMFILE), OpenError::Other(_)));
}

#[test]
fn the_module_tells_the_backend() {
    for (module, cpu, expected) in [
        ("kvm_intel", INTEL, Backend::Vmx { nested_paging: true }),
        ("kvm_amd", AMD, Backend::Svm { nested_paging: true }),
        ("kvm_pvm", CLOUD, Backend::Pvm),
        ("kvm_pvm", INTEL, Backend::Pvm),
        ("kvm", INTEL, Backend::Unknown),
    ] {
        let (_root, files) = host(&[module]);
        assert_eq!(backend(&files, cpu), expected, "{module}");
    }
}

#[test]
fn of_two_built_in_modules_the_processor_decides() {
    let (_root, files) = host(&["kvm_intel", "kvm_pvm"]);
    assert_eq!(backend(&files, CLOUD), Backend::Pvm);
    assert_eq!(backend(&files, INTEL), Backend::Vmx { nested_paging: true });
}

#[test]
fn a_module_without_nested_paging_is_seen() {
    let (root, files) = host(&["kvm_amd"]);
    std::fs::write(root.path().join("sys/module/kvm_amd/parameters/npt"), "N\n").unwrap();
    assert_eq!(backend(&files, AMD), Backend::Svm { nested_paging: false });
}
