use super::*;

const UNIFIED: &str = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const PIDS: &str = "31 20 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

fn host(mounts: &str, groups: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
    let root = tempfile::tempdir().unwrap();
    let own = [("proc/self/mountinfo", mounts), ("proc/self/cgroup", groups)];
    for (path, text) in own.iter().chain(files) {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let files = Files::new(root.path());
    (root, files)
}

#[test]
fn the_version_is_what_is_mounted() {
    let both = format!("{UNIFIED}{PIDS}");
    for (mounts, expected) in [
        ("", CgroupVersion::None),
        (PIDS, CgroupVersion::V1),
        (UNIFIED, CgroupVersion::V2),
        (both.as_str(), CgroupVersion::Hybrid),
        ("a line that is - \n - cgroup2\nnonsense\n", CgroupVersion::None),
    ] {
        assert_eq!(version(mounts), expected, "{mounts}");
    }
}

#[test]
fn our_group_has_the_controllers_of_its_own_file() {
    let group = "sys/fs/cgroup/user.slice/a";
    let controllers = format!("{group}/cgroup.controllers");
    let files = [
        (controllers.as_str(), "cpu memory\n"),
        ("sys/fs/cgroup/user.slice/a/cgroup.procs", ""),
        ("sys/fs/cgroup/user.slice/a/cgroup.subtree_control", ""),
    ];
    let (_root, files) = host(UNIFIED, "0::/user.slice/a\n", &files);
    let cgroup = probe(&files);
    assert_eq!(cgroup.group.as_deref(), Some("/sys/fs/cgroup/user.slice/a"));
    assert_eq!(cgroup.controllers, ["cpu", "memory"]);
    assert!(cgroup.delegated);
}

#[test]
fn a_group_without_its_control_files_is_not_delegated() {
    let (_root, files) = host(UNIFIED, "0::/\n", &[("sys/fs/cgroup/cgroup.controllers", "cpu\n")]);
    let cgroup = probe(&files);
    assert_eq!(cgroup.group.as_deref(), Some("/sys/fs/cgroup"));
    assert!(!cgroup.delegated);
}

#[test]
fn a_path_that_is_only_there_outside_falls_back_to_the_mount() {
    let (_root, files) = host(UNIFIED, "0::/../outer\n", &[("sys/fs/cgroup/cgroup.controllers", "io\n")]);
    let cgroup = probe(&files);
    assert_eq!(cgroup.controllers, ["io"]);
}

#[test]
fn the_lowest_limit_of_tasks_on_the_way_up_counts_in_either_version() {
    let v2 = [("sys/fs/cgroup/a/pids.max", "500\n"), ("sys/fs/cgroup/a/b/pids.max", "max\n")];
    let (_root, files) = host(UNIFIED, "0::/a/b\n", &v2);
    assert_eq!(pids_max(&files), Some(500));
    let v1 = [("sys/fs/cgroup/pids/a/pids.max", "300\n")];
    let (_root, files) = host(PIDS, "8:pids:/a\n0::/\n", &v1);
    assert_eq!(pids_max(&files), Some(300));
    let (_root, files) = host("", "", &[]);
    assert_eq!(pids_max(&files), None);
}
