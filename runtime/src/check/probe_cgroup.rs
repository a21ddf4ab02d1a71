//! Finds our place in the cgroup trees (`cgroups(7)`, kernel `admin-guide/cgroup-v2`).

use super::facts::{Cgroup, CgroupVersion, Limit};
use super::probe::Files;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::path::Path;

/// The file system type of version 1 in `/proc/self/mountinfo`.
const V1: &str = "cgroup";
/// The file system type of version 2.
const V2: &str = "cgroup2";

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

pub(super) fn probe(files: &Files) -> Cgroup {
    let mounts = files.text("proc/self/mountinfo");
    let group = own_group(files, &mounts, V2, "");
    let controllers = group.as_deref().map(|group| files.text(&format!("{group}/cgroup.controllers")));
    Cgroup {
        version: version(&mounts),
        controllers: controllers.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        delegated: group.as_deref().is_some_and(|group| delegated(&files.path(group))),
        group: group.map(|group| format!("/{group}")),
    }
}

/// The lowest `pids.max` on the way from our group to the root, of whichever version has the controller.
pub(super) fn pids_max(files: &Files) -> Limit {
    let mounts = files.text("proc/self/mountinfo");
    let groups = [own_group(files, &mounts, V2, ""), own_group(files, &mounts, V1, "pids")];
    groups.into_iter().flatten().filter_map(|group| lowest_pids(files, &group)).min()
}

fn lowest_pids(files: &Files, group: &str) -> Limit {
    let above = Path::new(group).ancestors().filter_map(Path::to_str).filter(|path| !path.is_empty());
    above.filter_map(|path| files.number(&format!("{path}/pids.max"))).min()
}

/// Our group of one version, relative to `/`; `controller` is empty for version 2.
fn own_group(files: &Files, mounts: &str, kind: &str, controller: &str) -> Option<String> {
    let has = |options: &str| controller.is_empty() || options.split(',').any(|option| option == controller);
    let mount = mounts.lines().filter_map(mount).find(|mount| mount.kind == kind && has(mount.options))?;
    let point = mount.point.trim_start_matches('/');
    let groups = files.text("proc/self/cgroup");
    let path = groups.lines().find_map(|line| member_of(line, controller)).unwrap_or("/");
    let group = format!("{point}{}", path.trim_end_matches('/'));
    // In a container the path may be one that is only there outside.
    Some(if files.exists(&group) { group } else { point.to_owned() })
}

/// The path of a line `id:controllers:path` of `/proc/self/cgroup`, if it is that of `controller`.
fn member_of<'a>(line: &'a str, controller: &str) -> Option<&'a str> {
    let mut fields = line.splitn(3, ':').skip(1);
    let controllers = fields.next()?;
    controllers.split(',').any(|one| one == controller).then(|| fields.next())?
}

/// The fields after the separator ` - ` are type, source and options of the file system.
fn mount(line: &str) -> Option<Mount<'_>> {
    let (place, system) = line.split_once(" - ")?;
    let mut system = system.split(' ');
    Some(Mount { point: place.split(' ').nth(4)?, kind: system.next()?, options: system.nth(1)? })
}

fn version(mounts: &str) -> CgroupVersion {
    let has = |kind: &str| mounts.lines().filter_map(mount).any(|mount| mount.kind == kind);
    match (has(V1), has(V2)) {
        (false, false) => CgroupVersion::None,
        (true, false) => CgroupVersion::V1,
        (true, true) => CgroupVersion::Hybrid,
        (false, true) => CgroupVersion::V2,
    }
}

/// Whether a process with our rights can make groups in `group`, move into them and hand controllers on.
fn delegated(group: &Path) -> bool {
    let may_write = |path: &Path| accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    may_write(group)
        && ["cgroup.procs", "cgroup.subtree_control"].iter().all(|file| may_write(&group.join(file)))
}

#[cfg(test)]
#[path = "probe_cgroup_test.rs"]
mod tests;
