//! What the facts mean for confinement: cgroups, Landlock, seccomp, name spaces, rights.
//!
//! These items tell what the host has to offer. What Ringlet makes of it is in `docs/security.md`.

use super::facts::{Cgroup, CgroupVersion, Facts, Identity, Landlock, Seccomp, UserNamespaces};
use super::{Item, Status};

/// Controllers that confine a process with VMs.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Actions that a filter for threads that run guests takes.
const ACTIONS: [&str; 3] = ["kill_process", "errno", "log"];

pub(super) fn judge(facts: &Facts) -> Vec<Item> {
    vec![
        cgroup(&facts.cgroup),
        landlock(facts.landlock),
        seccomp(&facts.seccomp),
        namespaces(facts.identity.user_namespaces),
        identity(facts.identity),
        no_new_privs(facts.identity),
    ]
}

fn cgroup(cgroup: &Cgroup) -> Item {
    let item = Item::new("confine.cgroup", "cgroups");
    let outside =
        "memory, I/O and task limits around Ringlet cannot be set by it; its limits for each VM need none";
    let reboot =
        "add systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all to the kernel's command line and reboot";
    match cgroup.version {
        CgroupVersion::None => item
            .verdict(Status::Warn, "no cgroup file system is mounted", outside)
            .remedy("sudo mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        CgroupVersion::V1 => item.verdict(Status::Warn, "version 1 only", outside).remedy(reboot),
        CgroupVersion::Hybrid | CgroupVersion::V2 => version_2(item, cgroup, outside, reboot),
    }
}

fn version_2(item: Item, cgroup: &Cgroup, outside: &str, reboot: &str) -> Item {
    let group = cgroup.group.as_deref().unwrap_or("not found");
    let has = |controller: &&&str| cgroup.controllers.iter().any(|one| one == **controller);
    let missing: Vec<&str> = CONTROLLERS.iter().filter(|controller| !has(controller)).copied().collect();
    let kind = if cgroup.version == CgroupVersion::V2 { "version 2" } else { "version 2 beside version 1" };
    if !missing.is_empty() {
        let found = format!("{kind}, group {group}, without {}", missing.join(", "));
        let item = item.verdict(Status::Warn, found, outside);
        return if cgroup.version == CgroupVersion::Hybrid {
            item.remedy(reboot)
        } else {
            item.remedy(delegate())
        };
    }
    if cgroup.delegated {
        let found = format!("{kind}, group {group}, delegated with {}", cgroup.controllers.join(" "));
        return item.verdict(Status::Ok, found, "Ringlet may be given groups with limits of their own");
    }
    let found = format!("{kind}, group {group}, not delegated to us");
    item.verdict(Status::Warn, found, outside).remedy(delegate())
}

fn delegate() -> &'static str {
    "systemd-run --user --scope -p Delegate=yes -- ringlet …"
}

fn landlock(landlock: Landlock) -> Item {
    let item = Item::new("confine.landlock", "Landlock");
    let without = "what a process may open cannot be narrowed by itself";
    match landlock {
        Landlock::Abi(abi) => {
            let net = if abi >= 4 { "files and TCP ports" } else { "files" };
            item.verdict(
                Status::Ok,
                format!("ABI {abi}"),
                format!("a process can narrow down its own access to {net}"),
            )
        }
        Landlock::Disabled => item
            .verdict(Status::Warn, "built into the kernel but not enabled at boot", without)
            .remedy("add landlock to the list lsm= on the kernel's command line and reboot"),
        Landlock::Absent => item.verdict(
            Status::Warn,
            "not in this kernel (CONFIG_SECURITY_LANDLOCK, Linux 5.13), or hidden",
            without,
        ),
    }
}

fn seccomp(seccomp: &Seccomp) -> Item {
    let item = Item::new("confine.seccomp", "seccomp");
    let there = |action: &&str| seccomp.actions.iter().any(|one| one == *action);
    let now = if seccomp.filtered { "; this process is under a filter already" } else { "" };
    if ACTIONS.iter().all(there) {
        let found = format!("filters with {}{now}", seccomp.actions.join(" "));
        item.verdict(Status::Ok, found, "each thread can give up the system calls that it does not need")
    } else {
        let found = format!("no filters, or none that can end a process{now}");
        item.verdict(
            Status::Warn,
            found,
            "every system call stays open to a guest that broke out (CONFIG_SECCOMP_FILTER)",
        )
    }
}

fn namespaces(namespaces: UserNamespaces) -> Item {
    let item = Item::new("confine.namespaces", "user name spaces");
    let (found, remedy) = match namespaces {
        UserNamespaces::Available => {
            let means = "an unprivileged process can shut itself off from files, network and processes";
            return item.verdict(Status::Ok, "can be made without privilege", means);
        }
        UserNamespaces::Absent => ("not in this kernel (CONFIG_USER_NS)", None),
        UserNamespaces::Forbidden => {
            ("user.max_user_namespaces is 0", Some("sudo sysctl user.max_user_namespaces=10000"))
        }
        UserNamespaces::PrivilegedOnly => {
            ("kernel.unprivileged_userns_clone is 0", Some("sudo sysctl kernel.unprivileged_userns_clone=1"))
        }
        UserNamespaces::AppArmor => (
            "kernel.apparmor_restrict_unprivileged_userns is 1",
            Some("sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ),
    };
    let item =
        item.verdict(Status::Warn, found, "only a privileged process can shut off those that run guests");
    match remedy {
        Some(remedy) => item.remedy(remedy),
        None => item,
    }
}

fn identity(identity: Identity) -> Item {
    let item = Item::new("confine.user", "user");
    if identity.uid == 0 {
        let means = "a guest that broke out would own this host; Ringlet needs no root, only the group kvm";
        return item.verdict(Status::Warn, "root", means).remedy(
            "sudo groupadd -f kvm && sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && \
                 sudo useradd --system --groups kvm ringlet && sudo -u ringlet ringlet …",
        );
    }
    item.verdict(
        Status::Ok,
        format!("uid {}", identity.uid),
        "a guest that broke out would have this user's rights",
    )
}

fn no_new_privs(identity: Identity) -> Item {
    let item = Item::new("confine.no_new_privs", "no new privileges");
    if identity.no_new_privs {
        return item.verdict(Status::Ok, "set", "no program that is started from here can gain rights");
    }
    let means = "a program with set-user-id bits that is started from here gains rights";
    item.verdict(Status::Info, "not set", means).remedy("setpriv --no-new-privs ringlet …")
}
