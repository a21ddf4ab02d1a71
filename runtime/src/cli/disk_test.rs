use super::*;

fn drive(text: &str) -> Drive {
    parse(text).unwrap().drive
}

#[test]
fn a_disk_is_a_source_and_options() {
    assert_eq!(drive("path=/d.img"), Drive::file("", "/d.img"));
    assert_eq!(drive("id=a,path=/d:x.img"), Drive::file("a", "/d:x.img"));
    assert_eq!(
        drive("path=d,id=root,readonly,direct=on,cache=unsafe,queues=4,queue_size=64,serial=A 1"),
        Drive::file("root", "d")
            .read_only()
            .direct()
            .cache(CacheType::Unsafe)
            .queues(4)
            .queue_size(64)
            .serial("A 1")
    );
    assert_eq!(drive("path=d,readonly=off,cache=writeback"), Drive::file("", "d"));
    assert_eq!(drive("null"), Drive::null("", 1 << 30));
    assert_eq!(drive("null:64M,id=x"), Drive::null("x", 64 << 20));
    assert_eq!(drive("memory:2G,readonly"), Drive::memory("", 2 << 30).read_only());
}

#[test]
fn mistakes_are_told_with_what_would_be_right() {
    for (text, what) in [
        ("", "a comma too many"),
        ("/d.img", "\"/d.img\" looks like a file: say path=/d.img"),
        ("disk.img,readonly", "say path=disk.img"),
        ("readonly", "which disk? Say path=FILE, null:SIZE"),
        ("path=", "path needs a value"),
        ("path", "path needs a value"),
        ("path=d,", "a comma too many"),
        ("path=d,path=e", "path is given twice"),
        ("path=d,ro", "there is no \"ro\"; did you mean \"readonly\"?"),
        ("file=d", "did you mean \"path\"?"),
        ("path=d,seriel=x", "did you mean \"serial\"?"),
        ("path=d,cach=unsafe", "did you mean \"cache\"?"),
        ("nul", "there are path=FILE, null[:SIZE] or memory:SIZE"),
        ("path=d,frobnicate", "and then id, readonly, direct, cache, queues, queue_size, serial"),
        ("path=d,readonly=maybe", "readonly=maybe: say on or off"),
        ("path=d,cache=none", "cache=none: say writeback or unsafe"),
        ("path=d,queues=x", "queues=x: not a number"),
        ("path=d,queues=70000", "queues=70000: not a number that a disk can have"),
        ("path=d,serial=", "serial needs a value"),
        ("null,uninitialized-reads", "there is no \"uninitialized-reads\""),
        ("null:5", "Say 5M"),
        ("null:0", "0 is nothing"),
        ("null:1M,path=x", "no path"),
        ("memory", "needs a size"),
        ("memory:x", "not a number with a suffix"),
        ("memory:99999999T", "too large"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn disks_are_named_and_replace_those_of_the_configuration_file() {
    let mut config = VmConfig::new("x").drive(Drive::file("disk0", "/a")).drive(Drive::file("data", "/b"));
    let line =
        ["null:1M", "path=/c,id=data", "memory:1M", "path=/e,id=disk2"].map(|text| parse(text).unwrap());
    add(&mut config, &line);
    let names: Vec<_> = config.drives.iter().map(|drive| drive.drive_id.as_str()).collect();
    assert_eq!(names, ["disk0", "data", "disk1", "disk3", "disk2"]);
    assert_eq!(config.drives[1], Drive::file("data", "/c"));
    config.validate().unwrap();
    add(&mut config, &["null,id=x", "null,id=x"].map(|text| parse(text).unwrap()));
    assert!(config.validate().unwrap_err().to_string().contains("two drives"));
}
