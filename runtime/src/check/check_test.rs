//! Verdicts on fabricated hosts, the report's format, and the host that the test runs on.

use super::facts::*;
use super::*;
use crate::kvm::Virtualization;
use ringlet_io::UringUnavailable;
use std::collections::BTreeSet;

/// A host on which everything is as it should be.
fn good() -> Facts {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    Facts {
        cpu: Cpu { virtualization: Virtualization::Vmx, hypervisor: false },
        kernel: "6.12.1".into(),
        kvm: Kvm { backend: Backend::Vmx { nested_paging: true }, device: Ok(device()) },
        io_uring: Ok(()),
        limits: Limits {
            open_files_soft: Some(1 << 20),
            open_files_hard: Some(1 << 20),
            locked_memory: Some(8 << 20),
            user_threads: None,
            threads_max: Some(100_000),
            pid_max: Some(1 << 22),
            cgroup_pids: None,
            mappings: Some(65530),
            cpu_timers: Ok(()),
        },
        memory: Memory { available: 1 << 34, huge_pages: 9, huge_pages_free: 9, huge_page_size: 2 << 20 },
        cgroup: Cgroup {
            version: CgroupVersion::V2,
            group: Some("/sys/fs/cgroup/a".into()),
            controllers: words("cpuset cpu io memory pids"),
            delegated: true,
        },
        tap: Tap { device: Ok(()), net_admin: true },
        passt: Some("/usr/bin/passt".into()),
        landlock: Landlock::Abi(6),
        seccomp: Seccomp { actions: words("kill_process kill_thread trap errno log allow"), filtered: false },
        identity: Identity { uid: 1000, no_new_privs: true, user_namespaces: UserNamespaces::Available },
    }
}

fn device() -> KvmDevice {
    let capabilities = probe_kvm::all_capabilities();
    KvmDevice { api_version: 12, capabilities, max_vcpus: 1024, memory_slots: 32764, trial: Ok(()) }
}

/// The report on the good host after `change`.
fn after(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = good();
    change(&mut facts);
    Report::new(judge::judge(&facts))
}

fn item<'a>(report: &'a Report, id: &str) -> &'a Item {
    report.items.iter().find(|item| item.id == id).unwrap_or_else(|| panic!("no item {id}"))
}

fn status_after(id: &str, change: impl FnOnce(&mut Facts)) -> Status {
    item(&after(change), id).status
}

#[test]
fn a_good_host_has_nothing_to_mend() {
    let report = after(|_| {});
    assert!(report.can_run());
    for item in &report.items {
        assert!(matches!(item.status, Status::Ok | Status::Info), "{item:?}");
        assert_eq!(item.remedy, None, "{item:?}");
        assert!(!item.found.is_empty() && !item.means.is_empty(), "{item:?}");
    }
}

#[test]
fn no_vm_runs_without_kvm() {
    let absent = |cpu: Cpu| {
        after(move |facts| {
            facts.cpu = cpu;
            facts.kvm = Kvm { backend: Backend::Unknown, device: Err(OpenError::Absent) };
        })
    };
    for (virtualization, hypervisor, hint) in [
        (Virtualization::Vmx, false, "module"),
        (Virtualization::None, false, "firmware"),
        (Virtualization::None, true, "nested"),
    ] {
        let report = absent(Cpu { virtualization, hypervisor });
        assert!(!report.can_run());
        let item = item(&report, "kvm.device");
        assert_eq!(item.status, Status::Fail);
        assert!(item.means.contains(hint) && item.remedy.is_some(), "{item:?}");
    }
}

#[test]
fn a_device_that_is_closed_to_us_or_of_another_version_fails() {
    let denied = after(|facts| facts.kvm.device = Err(OpenError::Denied));
    assert!(!denied.can_run());
    assert!(item(&denied, "kvm.device").remedy.as_ref().unwrap().contains("usermod"));
    let old = after(|facts| facts.kvm.device.as_mut().unwrap().api_version = 11);
    assert!(!old.can_run());
}

#[test]
fn each_required_capability_is_needed_and_each_extra_is_not() {
    for index in 0..device().capabilities.len() {
        let capability = device().capabilities[index].0;
        let report = after(|facts| facts.kvm.device.as_mut().unwrap().capabilities[index].1 = false);
        assert_eq!(report.can_run(), !capability.required, "{capability:?}");
        let id = if capability.required { "kvm.capabilities" } else { "kvm.capabilities.optional" };
        assert!(item(&report, id).found.contains(capability.name));
    }
}

#[test]
fn a_vm_that_could_not_be_made_fails_and_says_where() {
    let report =
        after(|facts| facts.kvm.device.as_mut().unwrap().trial = Err("KVM_CREATE_VCPU: no".to_owned()));
    assert!(!report.can_run());
    assert!(item(&report, "kvm.trial").found.contains("KVM_CREATE_VCPU"));
}

#[test]
fn the_backend_says_which_guests_it_runs() {
    let means = |backend| item(&after(|facts| facts.kvm.backend = backend), "kvm.backend").means.clone();
    assert!(means(Backend::Pvm).contains("unmodified Linux cannot"));
    assert!(means(Backend::Svm { nested_paging: true }).contains("every guest runs"));
    assert_eq!(
        status_after("kvm.backend", |f| f.kvm.backend = Backend::Svm { nested_paging: false }),
        Status::Warn
    );
}

#[test]
fn io_uring_is_not_needed_but_its_lack_is_explained() {
    for (error, words, remedy) in [
        (UringUnavailable::Missing, "ENOSYS", false),
        (UringUnavailable::Disabled(2), "io_uring_disabled is 2", true),
        (UringUnavailable::Filtered, "seccomp", true),
        (UringUnavailable::Memory, "ENOMEM", true),
        (UringUnavailable::TooOld, "too old", false),
        (UringUnavailable::Other(std::io::Error::other("odd")), "odd", false),
    ] {
        let report = after(|facts| facts.io_uring = Err(error));
        assert!(report.can_run());
        let item = item(&report, "io_uring");
        assert_eq!(item.status, Status::Warn);
        assert!(item.found.contains(words), "{item:?}");
        assert_eq!(item.remedy.is_some(), remedy, "{item:?}");
    }
}

#[test]
fn limits_are_judged_by_the_vms_that_fit() {
    for (files, expected) in [(8, Status::Fail), (1024, Status::Warn), (65536, Status::Ok)] {
        let status = status_after("limits.open_files", |facts| facts.limits.open_files_soft = Some(files));
        assert_eq!(status, expected, "{files} open files");
    }
    let few = after(|facts| facts.limits.cgroup_pids = Some(100));
    assert!(item(&few, "limits.threads").found.contains("pids.max"));
    assert_eq!(item(&few, "limits.threads").status, Status::Warn);
    assert_eq!(status_after("limits.threads", |facts| facts.limits.user_threads = Some(10)), Status::Fail);
    let root = |facts: &mut Facts| (facts.limits.user_threads, facts.identity.uid) = (Some(10), 0);
    assert_eq!(status_after("limits.threads", root), Status::Ok);
    assert_eq!(status_after("limits.mappings", |facts| facts.limits.mappings = Some(100)), Status::Warn);
}

#[test]
fn without_exact_timers_of_cpu_time_there_are_others() {
    let refused = after(|facts| facts.limits.cpu_timers = Err("Permission denied (os error 13)".into()));
    let item = item(&refused, "limits.cpu_timers");
    assert_eq!(item.status, Status::Warn);
    assert!(item.found.contains("ticks") && item.found.contains("Permission denied"), "{item:?}");
    assert!(item.remedy.as_deref().is_some_and(|remedy| remedy.contains("CAP_PERFMON")), "{item:?}");
}

#[test]
fn locked_memory_matters_only_to_old_kernels() {
    let small = |kernel: &'static str| {
        status_after("limits.locked_memory", move |facts| {
            facts.kernel = kernel.to_owned();
            facts.limits.locked_memory = Some(65536);
        })
    };
    assert_eq!(small("5.11.0"), Status::Warn);
    assert_eq!(small("5.12.0-rc1"), Status::Ok);
}

#[test]
fn an_old_or_unreadable_kernel_release_is_a_warning() {
    for kernel in ["5.4.0-generic", "", "six"] {
        assert_eq!(
            status_after("kernel", |facts| facts.kernel = kernel.to_owned()),
            Status::Warn,
            "{kernel}"
        );
    }
}

#[test]
fn what_confinement_lacks_is_named_with_its_remedy() {
    type Change = fn(&mut Facts);
    let changes: [(&str, Change); 9] = [
        ("confine.cgroup", |facts| facts.cgroup.version = CgroupVersion::None),
        ("confine.cgroup", |facts| facts.cgroup.version = CgroupVersion::V1),
        ("confine.cgroup", |facts| facts.cgroup.delegated = false),
        ("confine.cgroup", |facts| facts.cgroup.controllers.clear()),
        ("confine.landlock", |facts| facts.landlock = Landlock::Disabled),
        ("confine.namespaces", |facts| facts.identity.user_namespaces = UserNamespaces::Forbidden),
        ("confine.namespaces", |facts| facts.identity.user_namespaces = UserNamespaces::AppArmor),
        ("confine.user", |facts| facts.identity.uid = 0),
        ("tap", |facts| facts.tap.device = Err(OpenError::Absent)),
    ];
    for (id, change) in changes {
        let report = after(change);
        let item = item(&report, id);
        assert_eq!(item.status, Status::Warn, "{item:?}");
        assert!(item.remedy.is_some(), "{item:?}");
        assert!(report.can_run(), "{id} is not needed to run a VM");
    }
    assert_eq!(status_after("confine.landlock", |f| f.landlock = Landlock::Absent), Status::Warn);
    assert_eq!(status_after("confine.seccomp", |f| f.seccomp.actions.clear()), Status::Warn);
}

#[test]
fn what_networks_lack_is_named_with_its_remedy() {
    let none = after(|facts| facts.passt = None);
    assert_eq!(item(&none, "passt").status, Status::Info);
    assert_eq!(item(&none, "passt").remedy.as_deref(), Some("sudo apt install passt"));
    let shut = after(|facts| facts.identity.user_namespaces = UserNamespaces::AppArmor);
    assert_eq!(item(&shut, "passt").status, Status::Info);
    assert!(item(&shut, "confine.namespaces").remedy.is_some());
    let tap = |namespaces| {
        let report = after(|facts| {
            facts.tap.net_admin = false;
            facts.identity.user_namespaces = namespaces;
        });
        let tap = item(&report, "tap");
        assert!(tap.remedy.as_ref().is_some_and(|remedy| remedy.contains("tuntap add")), "{tap:?}");
        tap.means.contains("unshare")
    };
    assert!(tap(UserNamespaces::Available));
    assert!(!tap(UserNamespaces::Forbidden));
}

#[test]
fn sec_13_control_characters_of_the_host_are_escaped() {
    let report = after(|facts| {
        facts.kernel = "6.1\x1b[2J\u{9b}31m\u{202e}".to_owned();
        facts.cgroup.group = Some("/sys/fs/cgroup/\x07\n".to_owned());
        facts.passt = Some("/home/\x1b[2J/passt".to_owned());
        facts.io_uring = Err(UringUnavailable::Other(std::io::Error::other("\x1b]0;title\x07")));
    });
    let mut text = Vec::new();
    report.print(&mut text, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    assert!(text.contains(r"6.1\u{1b}[2J\u{9b}31m\u{202e}"), "{text}");
    assert!(!item(&report, "confine.cgroup").found.contains('\n'));
}

#[test]
fn the_json_keeps_its_format() {
    let json = serde_json::to_value(after(|facts| facts.identity.uid = 0)).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), ["can_run", "items", "schema", "version"]);
    assert_eq!(json["schema"], 1);
    assert_eq!(json["can_run"], true);
    for item in json["items"].as_array().unwrap() {
        assert_eq!(keys(item), ["found", "id", "means", "name", "remedy", "status"]);
        assert!(["ok", "info", "warn", "fail"].contains(&item["status"].as_str().unwrap()));
    }
}

#[test]
fn every_item_is_documented_and_occurs_once() {
    let documented = include_str!("../../../docs/hosts.md");
    let report = after(|_| {});
    let ids: BTreeSet<_> = report.items.iter().map(|item| item.id).collect();
    assert_eq!(ids.len(), report.items.len());
    for id in ids {
        assert!(documented.contains(&format!("`{id}`")), "docs/hosts.md does not list {id}");
    }
}

#[test]
fn colour_is_only_there_when_asked_for() {
    let (mut plain, mut coloured) = (Vec::new(), Vec::new());
    let report = after(|_| {});
    report.print(&mut plain, false).unwrap();
    report.print(&mut coloured, true).unwrap();
    assert!(!plain.contains(&0x1b) && coloured.contains(&0x1b));
    assert!(String::from_utf8(plain).unwrap().ends_with("looked at\n"));
}

#[test]
fn this_host_is_judged_as_its_device_says() {
    let report = report();
    let opens = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    assert_eq!(item(&report, "kvm.device").status == Status::Ok, opens);
    assert_eq!(report.can_run(), opens, "{report:#?}");
    assert!(report.items.len() >= 20, "{} items", report.items.len());
}
