use super::*;
use crate::kvm::Virtualization;

fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let files = Files::new(root.path());
    (root, files)
}

#[test]
fn the_processor_flags_are_words() {
    let cpu = cpu("processor\t: 0\nflags\t\t: fpu vmx hypervisor\nbugs: svm\n");
    assert!(cpu.virtualization == Virtualization::Vmx && cpu.hypervisor);
    let other = super::cpu("flags : svmx vmx_fake\n");
    assert!(other.virtualization == Virtualization::None && !other.hypervisor);
}

#[test]
fn memory_is_read_in_kibibytes_and_pages() {
    let text = "MemTotal: 9 kB\nMemAvailable:   2048 kB\nHugePages_Total:  4\nHugePages_Free: 3\nHugepagesize: 2048 kB\n";
    let memory = memory(text);
    assert_eq!(memory.available, 2 << 20);
    assert_eq!((memory.huge_pages, memory.huge_pages_free, memory.huge_page_size), (4, 3, 2 << 20));
    assert_eq!(super::memory("").available, 0);
}

#[test]
fn capabilities_are_bits_of_a_hexadecimal_number() {
    assert!(has_capability("CapPrm:\t0\nCapEff:\t0000000000001000\n", CAP_NET_ADMIN));
    assert!(!has_capability("CapEff:\t0000000000000800\n", CAP_NET_ADMIN));
    assert!(!has_capability("CapEff:\tnonsense\n", CAP_NET_ADMIN));
    assert!(!has_capability("", CAP_NET_ADMIN));
}

#[test]
fn a_filter_already_in_force_is_seen() {
    let (_root, files) = host(&[("proc/sys/kernel/seccomp/actions_avail", "kill_process errno log\n")]);
    let seen = seccomp(&files, "Seccomp:\t2\nSeccomp_filters:\t1\n");
    assert!(seen.filtered);
    assert_eq!(seen.actions, ["kill_process", "errno", "log"]);
    assert!(!seccomp(&files, "Seccomp:\t0\n").filtered);
}

#[test]
fn each_way_to_forbid_user_namespaces_is_told_apart() {
    let max = "proc/sys/user/max_user_namespaces";
    let clone = "proc/sys/kernel/unprivileged_userns_clone";
    let apparmor = "proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    for (present, expected) in [
        (vec![], UserNamespaces::Absent),
        (vec![(max, "0\n")], UserNamespaces::Forbidden),
        (vec![(max, "9\n"), (clone, "0\n")], UserNamespaces::PrivilegedOnly),
        (vec![(max, "9\n"), (clone, "1\n"), (apparmor, "1\n")], UserNamespaces::AppArmor),
        (vec![(max, "9\n"), (apparmor, "0\n")], UserNamespaces::Available),
    ] {
        let (_root, files) = host(&present);
        assert_eq!(user_namespaces(&files), expected);
    }
}

#[test]
fn a_missing_or_mangled_file_is_no_number() {
    let (_root, files) = host(&[("a", "12\n"), ("b", "twelve\n"), ("c", "")]);
    assert_eq!(files.number::<u64>("a"), Some(12));
    for path in ["b", "c", "d"] {
        assert_eq!(files.number::<u64>(path), None, "{path}");
    }
}
