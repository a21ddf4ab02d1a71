//! The value of `--net`: a network interface in one line.
//!
//! Owns the syntax only; ranges are checked where the configuration is.

use ringlet::{AntiSpoof, NetworkInterface, Pinning, VmConfig};

/// The keys.
const KEYS: [&str; 13] = [
    "tap",
    "fd",
    "socket",
    "passt",
    "publish",
    "id",
    "mac",
    "mtu",
    "queues",
    "queue_size",
    "anti_spoof",
    "ipv4",
    "ipv6",
];

/// Of the socket of a passt that somebody else has started.
const WHO_PUBLISHES: &str =
    "who started that passt says what it publishes: `passt --socket PATH --tcp-ports 8080:80`";

/// A network interface of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetArg {
    /// Without a name, if none was given.
    interface: NetworkInterface,
}

/// Understands `tap=NAME`, `fd=N[:N]…`, `socket=PATH` and `passt[=PATH]`, with options, each after a comma.
pub(super) fn parse(text: &str) -> Result<NetArg, String> {
    let mut interface = NetworkInterface::fds("", []);
    let mut seen = Vec::new();
    for option in text.split(',') {
        let (key, value) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value)));
        if seen.contains(&key) && !matches!(key, "ipv4" | "ipv6" | "publish") {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
        apply(&mut interface, key, value)?;
    }
    let is_free = text.split(',').any(|option| matches!(option, "anti_spoof=off" | "anti_spoof=false"));
    if is_free && (seen.contains(&"ipv4") || seen.contains(&"ipv6")) {
        return Err(
            "anti_spoof=off lets the guest send from any address: leave it out, or ipv4 and ipv6".into()
        );
    }
    let sides = seen.iter().filter(|key| matches!(**key, "tap" | "fd" | "socket" | "passt")).count();
    match sides {
        0 => Err("what is the host's side? Say tap=NAME, fd=N, socket=PATH or passt".into()),
        1 if seen.contains(&"publish") && interface.ringlet.socket.is_some() => Err(WHO_PUBLISHES.into()),
        1 if seen.contains(&"publish") && !seen.contains(&"passt") => {
            Err("publish is for passt: say passt,publish=8080:80".into())
        }
        1 => Ok(NetArg { interface }),
        _ => Err("say one of tap, fd, socket and passt".into()),
    }
}

fn apply(interface: &mut NetworkInterface, key: &str, value: Option<&str>) -> Result<(), String> {
    let needed =
        || value.filter(|value| !value.is_empty()).ok_or_else(|| format!("{key} needs a value: {key}=…"));
    let number = |range: &str| {
        let value = needed()?;
        value.parse::<u16>().map_err(|_| format!("{key}={value}: not {range}"))
    };
    match key {
        "tap" => interface.host_dev_name = Some(needed()?.into()),
        "socket" => interface.ringlet.socket = Some(needed()?.into()),
        "passt" => match value {
            None => {
                interface.ringlet.passt.get_or_insert_default();
            }
            Some(_) => interface.ringlet.socket = Some(needed()?.into()),
        },
        "publish" => interface.ringlet.passt.get_or_insert_default().publish.push(needed()?.parse()?),
        "fd" => {
            let parse = |text: &str| text.parse().ok().filter(|fd| *fd >= 0);
            let fds: Option<Vec<i32>> = needed()?.split(':').map(parse).collect();
            interface.ringlet.fds =
                fds.ok_or("fd: give the number of an open descriptor, or several with `:` between")?;
        }
        "id" => interface.iface_id = needed()?.into(),
        "mac" => interface.guest_mac = Some(needed()?.parse()?),
        "mtu" => interface.mtu = Some(number("a number from 68 to 65535")?),
        "queues" => interface.ringlet.queues = number("a number from 1 to 31")?,
        "queue_size" => interface.ringlet.queue_size = number("a power of two from 4 to 256")?,
        "anti_spoof" => match value {
            None | Some("on" | "true") => pin(interface, |_| {}),
            Some("off" | "false") => interface.ringlet.anti_spoof = Some(Pinning::Off),
            Some(other) => return Err(format!("anti_spoof={other}: say on or off")),
        },
        "ipv4" => {
            let address = address(key, needed()?)?;
            pin(interface, |pinned| pinned.ipv4.get_or_insert_default().push(address));
        }
        "ipv6" => {
            let address = address(key, needed()?)?;
            pin(interface, |pinned| pinned.ipv6.get_or_insert_default().push(address));
        }
        unknown => return Err(unknown_key(unknown, value)),
    }
    Ok(())
}

fn unknown_key(key: &str, value: Option<&str>) -> String {
    match key {
        "" => "it is empty, or there is a comma too many".into(),
        _ if value.is_none() && key.contains('/') => format!("{key:?} looks like a socket: say socket={key}"),
        _ if value.is_none() && key.starts_with("tap") => format!("{key:?} looks like a tap: say tap={key}"),
        _ => format!("there is no {key:?}; there are {}", KEYS.join(", ")),
    }
}

/// Pins the guest's addresses; `change` says which, besides those that are pinned already.
fn pin(interface: &mut NetworkInterface, change: impl FnOnce(&mut AntiSpoof)) {
    let mut addresses = match interface.ringlet.anti_spoof.take() {
        Some(Pinning::On(addresses)) => addresses,
        Some(Pinning::Off) | None => AntiSpoof::default(),
    };
    change(&mut addresses);
    interface.ringlet.anti_spoof = Some(Pinning::On(addresses));
}

fn address<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| {
        format!("{key}={text}: not an address of {}", if key == "ipv4" { "IPv4" } else { "IPv6" })
    })
}

/// Gives `config` the interfaces of the command line. One with the name of an interface that is there takes its place;
/// one without a name gets the first of net0, net1 … that is free.
pub(super) fn add(config: &mut VmConfig, interfaces: &[NetArg]) {
    let mut given: Vec<NetworkInterface> = interfaces.iter().map(|arg| arg.interface.clone()).collect();
    for index in 0..given.len() {
        let taken = |id: &String| config.network_interfaces.iter().chain(&given).any(|it| it.iface_id == *id);
        let free = (0_u32..).map(|n| format!("net{n}")).find(|id| !taken(id));
        if let Some(interface) = given.get_mut(index).filter(|it| it.iface_id.is_empty()) {
            interface.iface_id = free.unwrap_or_default();
        }
    }
    for interface in &mut config.network_interfaces {
        if let Some(index) = given.iter().position(|new| new.iface_id == interface.iface_id) {
            *interface = given.remove(index);
        }
    }
    config.network_interfaces.append(&mut given);
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
