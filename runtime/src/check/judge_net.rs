//! What the facts mean for networks: taps, which take a privilege, and passt, which takes none.

use super::facts::{Facts, OpenError, Tap, UserNamespaces};
use super::{Item, Status};

pub(super) fn judge(facts: &Facts) -> Vec<Item> {
    let namespaces = facts.identity.user_namespaces;
    vec![tap(&facts.tap, namespaces), passt(facts.passt.as_deref(), namespaces)]
}

fn tap(tap: &Tap, namespaces: UserNamespaces) -> Item {
    let item = Item::new("tap", "tap interfaces");
    match (&tap.device, tap.net_admin) {
        (Ok(()), true) => item.verdict(
            Status::Ok,
            "/dev/net/tun opens, and we have CAP_NET_ADMIN",
            "taps can be made and used; a VM without a network needs none",
        ),
        (Ok(()), false) => {
            let own = match namespaces {
                UserNamespaces::Available => {
                    ", or one in a network of its own (`unshare --user --map-root-user --net`)"
                }
                _ => "",
            };
            let means = format!(
                "only a tap that was made for this user can be used{own}; a VM without a network needs none"
            );
            item.verdict(Status::Info, "/dev/net/tun opens, but we lack CAP_NET_ADMIN", means)
                .remedy("sudo ip tuntap add dev tap0 mode tap user \"$(id -un)\"")
        }
        (Err(error), _) => {
            let (found, remedy) = match error {
                OpenError::Absent => ("there is no /dev/net/tun".to_owned(), "sudo modprobe tun"),
                OpenError::Denied => {
                    ("we may not open /dev/net/tun".to_owned(), "sudo chmod 0666 /dev/net/tun")
                }
                OpenError::Other(error) => (format!("/dev/net/tun: {error}"), "sudo modprobe tun"),
            };
            let means = "no VM can have a tap; a VM without a network needs none";
            item.verdict(Status::Warn, found, means).remedy(remedy)
        }
    }
}

fn passt(program: Option<&str>, namespaces: UserNamespaces) -> Item {
    let item = Item::new("passt", "user networks");
    match (program, namespaces) {
        (Some(program), UserNamespaces::Available) => {
            item.verdict(Status::Ok, program, "a VM can have a user-mode network (`--net passt`)")
        }
        (Some(program), _) => {
            let found = format!("{program}, but user name spaces cannot be made");
            let means = "passt does not start, since it sandboxes itself; see the item on user name spaces";
            item.verdict(Status::Info, found, means)
        }
        (None, _) => item
            .verdict(
                Status::Info,
                "passt is not installed",
                "no VM can have a user-mode network (`--net passt`)",
            )
            .remedy("sudo apt install passt"),
    }
}
