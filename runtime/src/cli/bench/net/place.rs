//! Where the benchmark happens: a network name space of its own, in a user name space that lends it the privilege which
//! taps take. It is gone, with all that was made in it, when the last process of the benchmark is.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::super::Options;
use crate::cli::CliResult;

/// util-linux's program that makes name spaces.
pub(super) const UNSHARE: &str = "unshare";
/// What it makes: users' and networks'; the user is root there.
const SPACES: [&str; 3] = ["--user", "--map-root-user", "--net"];

/// Becomes this program in a network of its own. Returns only if that cannot be.
pub(super) fn enter(options: Options) -> String {
    let probe = Command::new(UNSHARE).args(SPACES).arg("true").stdin(Stdio::null()).output();
    match probe {
        Err(error) => return format!("{UNSHARE} (of util-linux) cannot be run: {error}"),
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim();
            return format!(
                "no user and network name spaces can be made here: {said}; `ringlet check` tells how"
            );
        }
        Ok(_) => {}
    }
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return format!("where this program is cannot be found out: {error}"),
    };
    let given = [(options.json, "--json"), (options.check, "--check"), (options.quick, "--quick")];
    let given = given.into_iter().filter(|(given, _)| *given).map(|(_, option)| option);
    let mut inside = Command::new(UNSHARE);
    inside.args(SPACES).arg(own).args(["bench", "net", "--inside"]).args(given);
    format!("{UNSHARE} cannot be run: {}", inside.exec())
}

/// Has iproute2 change the network, with arguments between spaces.
///
/// # Errors
/// It is not there, or refuses; the message is its own.
pub(super) fn ip(arguments: &str) -> CliResult<()> {
    let output = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip (of iproute2) cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Makes a tap that is up, with an address of the host's end.
pub(super) fn make_tap(name: &str, address: &str) -> CliResult<()> {
    ip(&format!("tuntap add dev {name} mode tap"))?;
    ip(&format!("address add {address} dev {name}"))?;
    ip(&format!("link set dev {name} up"))
}
