//! What the facts mean: the list of items, and those about the machine as a whole.

use super::facts::{Facts, Limit, Limits, Memory};
use super::{Item, Status, judge_confine, judge_kvm, judge_net};
use ringlet_io::UringUnavailable;

/// Open files that one VM with one vCPU takes, generously.
const FILES_PER_VM: u64 = 16;
/// Fewer VMs than this is worth a warning.
const WORTH_A_WARNING: u64 = 200;
/// Threads that one VM with one vCPU takes: the vCPU's, and one of the kernel's (`kvm-nx-lpage-re`).
const THREADS_PER_VM: u64 = 2;
/// Threads that the process needs besides those.
const OTHER_THREADS: u64 = 16;
/// Mappings that one VM takes: RAM, the vCPU's run page, its thread's stack and guard.
const MAPPINGS_PER_VM: u64 = 8;
/// The oldest kernel that this is written for.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// Since this kernel, io_uring's memory is not charged to `RLIMIT_MEMLOCK`.
const RING_NOT_LOCKED: (u32, u32) = (5, 12);

/// All items, in the order in which they matter.
pub(super) fn judge(facts: &Facts) -> Vec<Item> {
    let mut items = vec![kernel(&facts.kernel)];
    items.extend(judge_kvm::judge(&facts.kvm, facts.cpu));
    items.extend([
        io_uring(&facts.io_uring),
        open_files(&facts.limits),
        threads(&facts.limits, facts.identity.uid),
        locked_memory(facts.limits.locked_memory, &facts.kernel),
        mappings(facts.limits.mappings),
        cpu_timers(&facts.limits.cpu_timers),
        memory(&facts.memory),
        huge_pages(&facts.memory),
    ]);
    items.extend(judge_net::judge(facts));
    items.extend(judge_confine::judge(facts));
    items
}

/// `major.minor` of a release such as `6.18.44-cloud`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Item {
    let item = Item::new("kernel", "Linux");
    match version(release) {
        Some(version) if version >= OLDEST_KERNEL => {
            item.verdict(Status::Ok, release, "new enough for everything that Ringlet does")
        }
        Some(_) => {
            let (major, minor) = OLDEST_KERNEL;
            let means =
                format!("Ringlet is made for Linux {major}.{minor} and later; nobody tries it on this one");
            item.verdict(Status::Warn, release, means)
        }
        None => item.verdict(Status::Warn, format!("`{release}`"), "not a release number that can be read"),
    }
}

fn io_uring(io_uring: &Result<(), UringUnavailable>) -> Item {
    let item = Item::new("io_uring", "io_uring");
    let error = match io_uring {
        Ok(()) => return item.verdict(Status::Ok, "usable", "devices are served through io_uring"),
        Err(error) => error,
    };
    let (found, remedy) = match error {
        UringUnavailable::Missing => ("not in this kernel, or hidden by a filter (ENOSYS)".to_owned(), None),
        UringUnavailable::Disabled(level) => (
            format!("forbidden: kernel.io_uring_disabled is {level}"),
            Some("sudo sysctl kernel.io_uring_disabled=0"),
        ),
        UringUnavailable::Filtered => (
            "forbidden by a seccomp filter (EPERM), as in most containers".to_owned(),
            Some("docker run --security-opt seccomp=PROFILE.json …, with a profile that allows io_uring_*"),
        ),
        UringUnavailable::Memory => {
            ("no memory for a ring (ENOMEM)".to_owned(), Some("sudo prlimit --pid $$ --memlock=unlimited"))
        }
        other => (other.to_string(), None),
    };
    let means = "devices are served through epoll and a few threads for files instead, which is slower";
    let item = item.verdict(Status::Warn, found, means);
    match remedy {
        Some(remedy) => item.remedy(remedy),
        None => item,
    }
}

fn open_files(limits: &Limits) -> Item {
    let item = Item::new("limits.open_files", "open files");
    let found = format!("{} (hard limit {})", number(limits.open_files_soft), number(limits.open_files_hard));
    let vms = limits.open_files_soft.map(|files| files / FILES_PER_VM);
    let (status, means) = for_vms(vms);
    let item = item.verdict(status, found, means);
    let more = limits.open_files_hard.is_none_or(|hard| Some(hard) > limits.open_files_soft);
    match (status, more) {
        (Status::Ok, _) => item,
        (_, true) => item.remedy("ulimit -n \"$(ulimit -Hn)\""),
        (_, false) => item.remedy("sudo prlimit --pid $$ --nofile=1048576"),
    }
}

/// Root is not held to `RLIMIT_NPROC`.
fn threads(limits: &Limits, uid: u32) -> Item {
    let item = Item::new("limits.threads", "threads");
    let named = [
        (limits.user_threads.filter(|_| uid != 0), "RLIMIT_NPROC", "sudo prlimit --pid $$ --nproc=unlimited"),
        (limits.threads_max, "kernel.threads-max", "sudo sysctl kernel.threads-max=200000"),
        (limits.pid_max, "kernel.pid_max", "sudo sysctl kernel.pid_max=4194304"),
        (
            limits.cgroup_pids,
            "pids.max of the cgroup",
            "sudo systemctl set-property user.slice TasksMax=infinity",
        ),
    ];
    let lowest = named.into_iter().filter_map(|(limit, name, remedy)| Some((limit?, name, remedy))).min();
    let Some((limit, name, remedy)) = lowest else {
        return item.verdict(Status::Ok, "unlimited", "each vCPU is a thread");
    };
    let (status, means) = for_vms(Some(limit.saturating_sub(OTHER_THREADS) / THREADS_PER_VM));
    let item = item.verdict(status, format!("{limit} ({name})"), format!("{means} of one vCPU each"));
    if status == Status::Ok { item } else { item.remedy(remedy) }
}

fn mappings(limit: Limit) -> Item {
    let (status, means) = for_vms(limit.map(|mappings| mappings / MAPPINGS_PER_VM));
    let found = format!("{} (vm.max_map_count)", number(limit));
    let item = Item::new("limits.mappings", "memory mappings").verdict(status, found, means);
    if status == Status::Ok { item } else { item.remedy("sudo sysctl vm.max_map_count=1048576") }
}

fn cpu_timers(exact: &Result<(), String>) -> Item {
    let item = Item::new("limits.cpu_timers", "timers of CPU time");
    match exact {
        Ok(()) => item.verdict(
            Status::Ok,
            "exact",
            "a VM that has used up its cpu.max is stopped within some tenths of a millisecond",
        ),
        Err(error) => {
            let means = "a VM that has used up its cpu.max is stopped some milliseconds late at times, and pays it back";
            item.verdict(Status::Warn, format!("at the scheduler's ticks (perf_event_open: {error})"), means)
                .remedy("sudo sysctl kernel.perf_event_paranoid=1, or give it CAP_PERFMON")
        }
    }
}

/// The verdict on a limit that allows this many VMs.
fn for_vms(vms: Limit) -> (Status, String) {
    match vms {
        None => (Status::Ok, "no limit to the VMs of one process".to_owned()),
        Some(0) => (Status::Fail, "not enough for one VM".to_owned()),
        Some(vms) if vms < WORTH_A_WARNING => {
            (Status::Warn, format!("enough for about {vms} VMs in one process"))
        }
        Some(vms) => (Status::Ok, format!("enough for about {vms} VMs in one process")),
    }
}

fn locked_memory(limit: Limit, release: &str) -> Item {
    let item = Item::new("limits.locked_memory", "locked memory");
    let found = limit.map_or_else(|| "unlimited".to_owned(), mebibytes);
    if version(release).is_some_and(|version| version >= RING_NOT_LOCKED) {
        return item.verdict(
            Status::Ok,
            found,
            "not needed: guest RAM is not locked, nor are rings of this kernel",
        );
    }
    let enough = limit.is_none_or(|bytes| bytes >= 8 << 20);
    let means = "this kernel counts the memory of io_uring's rings as locked";
    let item = item.verdict(if enough { Status::Ok } else { Status::Warn }, found, means);
    if enough { item } else { item.remedy("sudo prlimit --pid $$ --memlock=unlimited") }
}

fn memory(memory: &Memory) -> Item {
    let means = "guest RAM is taken from it as guests touch it, not when they start";
    Item::new("memory.available", "memory").verdict(
        Status::Info,
        format!("{} available", mebibytes(memory.available)),
        means,
    )
}

fn huge_pages(memory: &Memory) -> Item {
    let Memory { huge_pages: total, huge_pages_free: free, huge_page_size: size, .. } = *memory;
    let item = Item::new("memory.huge_pages", "huge pages");
    let found = format!("{free} of {total} free, {} each", mebibytes(size));
    if free > 0 {
        return item.verdict(Status::Ok, found, "guest RAM can be backed by them, if a VM asks for it");
    }
    let item = item.verdict(Status::Info, found, "a VM that asks for huge pages does not start; others do");
    item.remedy("sudo sysctl vm.nr_hugepages=512")
}

fn number(limit: Limit) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
