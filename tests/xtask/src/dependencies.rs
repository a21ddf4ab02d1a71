//! What `deny.toml` says about dependencies, held without the network: sources, licences, bans, one version each.
//!
//! `deny.toml` is also what `cargo deny` reads, which adds the advisories (they need the network).

use crate::process::{Run, root};
use anyhow::{Context, Result, bail, ensure};
use std::fs::read_to_string;

/// The only place dependencies come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Two versions of one of these do not fit together: their types meet in our signatures.
const ONE_VERSION: [&str; 4] = ["vm-memory", "vmm-sys-util", "kvm-bindings", "virtio-queue"];

/// Workspaces whose packages become part of what is handed on: Ringlet, and the guests that are inside its binary.
const HANDED_ON: [&str; 2] = [".", "examples/guests"];
/// Those whose packages do not.
const TESTS_ONLY: [&str; 1] = ["tests/fuzz"];

/// Checks each `Cargo.lock`, and the licences of everything that is linked in or runs at build time.
///
/// # Errors
/// Names every package that breaks a rule.
pub(crate) fn check() -> Result<()> {
    let policy = read_to_string(root().join("deny.toml")).context("cannot read deny.toml")?;
    let licences = strings(&policy, "licenses", "allow");
    let bans = strings(&policy, "bans", "deny");
    ensure!(!licences.is_empty() && !bans.is_empty(), "deny.toml has no allowed licences or no bans");
    let mut wrong = Vec::new();
    for workspace in HANDED_ON.iter().chain(&TESTS_ONLY) {
        let lock = format!("{workspace}/Cargo.lock");
        let text = read_to_string(root().join(&lock)).with_context(|| format!("cannot read {lock}"))?;
        wrong.extend(wrong_in_lock(&text, &bans).into_iter().map(|wrong| format!("{lock}: {wrong}")));
        println!("    {lock}: {} packages", packages(&text).len());
    }
    for workspace in HANDED_ON {
        let manifest = format!("--manifest-path={workspace}/Cargo.toml");
        let tree = ["tree", "--workspace", "--edges=normal,build", "--prefix=none", "--format={p}\t{l}"];
        let tree = Run::cargo(&tree).args(&[manifest]).output()?;
        wrong.extend(wrong_licences(&tree, &licences));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n    "));
    }
    Ok(())
}

/// Name, version and source of a `[[package]]` of `Cargo.lock`; our own have no source.
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    source: Option<&'a str>,
}

fn packages(lock: &str) -> Vec<Package<'_>> {
    let package = |text| {
        Some(Package {
            name: value(text, "name")?,
            version: value(text, "version")?,
            source: value(text, "source"),
        })
    };
    lock.split("[[package]]").skip(1).filter_map(package).collect()
}

/// The string that the line `key = "…"` of a TOML table gives.
fn value<'a>(table: &'a str, key: &str) -> Option<&'a str> {
    table.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

fn wrong_in_lock(lock: &str, bans: &[String]) -> Vec<String> {
    let packages = packages(lock);
    let mut wrong = Vec::new();
    for Package { name, version, source } in &packages {
        if source.is_some_and(|source| source != REGISTRY) {
            wrong.push(format!("{name} {version} does not come from crates.io"));
        }
        if bans.iter().any(|banned| banned == name) {
            wrong.push(format!("{name} {version} is banned by deny.toml"));
        }
    }
    for name in ONE_VERSION {
        let versions: Vec<_> = packages.iter().filter(|p| p.name == name).map(|p| p.version).collect();
        if versions.len() > 1 {
            wrong.push(format!("{name} is there in {} versions: {}", versions.len(), versions.join(", ")));
        }
    }
    wrong
}

/// Lines of `cargo tree` (`package<TAB>licence`) with a licence that `allowed` does not satisfy.
fn wrong_licences(tree: &str, allowed: &[String]) -> Vec<String> {
    let mut wrong: Vec<String> = tree
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(package, licence)| (package, licence.trim_end_matches(" (*)")))
        .filter(|(_, licence)| !satisfied(licence, allowed))
        .map(|(package, licence)| format!("{package}: licence `{licence}` is not allowed by deny.toml"))
        .collect();
    wrong.sort();
    wrong.dedup();
    wrong
}

/// Whether an SPDX expression (`OR`, `AND`, parentheses; `A/B` means `A OR B`) can be met with `allowed`.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.trim();
    for operator in [" OR ", "/", " AND "] {
        let parts = split_outside(expression, operator);
        if parts.len() > 1 {
            let mut parts = parts.into_iter().map(|part| satisfied(part, allowed));
            return if operator == " AND " { parts.all(|met| met) } else { parts.any(|met| met) };
        }
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => satisfied(inner, allowed),
        None => allowed.iter().any(|licence| licence == expression),
    }
}

/// Splits at `operator` where no parenthesis is open.
fn split_outside<'a>(expression: &'a str, operator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, c) in expression.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        let here = expression.get(at..).unwrap_or_default();
        if depth == 0 && at >= start && here.starts_with(operator) {
            parts.push(expression.get(start..at).unwrap_or_default());
            start = at + operator.len();
        }
    }
    parts.push(expression.get(start..).unwrap_or_default());
    parts
}

/// The strings of the array `key` in the table `table` of a TOML file that is formatted one entry a line or on one line.
fn strings(toml: &str, table: &str, key: &str) -> Vec<String> {
    let header = format!("[{table}]");
    let mut lines = toml.lines().skip_while(|line| line.trim() != header).skip(1);
    let starts = |line: &&str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    let body: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with('[')).collect();
    let array = body.iter().skip_while(|line| !starts(line));
    let mut found = Vec::new();
    for line in array {
        let code = line.split('#').next().unwrap_or_default();
        found.extend(code.split('"').skip(1).step_by(2).map(str::to_owned));
        if code.trim_end().ends_with(']') {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<String> {
        ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).to_vec()
    }

    #[test]
    fn licence_expressions() {
        for good in ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "(MIT OR GPL-2.0) AND Unicode-3.0"] {
            assert!(satisfied(good, &allowed()), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-2.0"] {
            assert!(!satisfied(bad, &allowed()), "{bad}");
        }
    }

    #[test]
    fn a_foreign_source_a_ban_and_a_second_version_are_found() {
        let package = |name: &str, version: &str, source: &str| {
            format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\n")
        };
        let good = package("vm-memory", "0.18.0", REGISTRY);
        assert_eq!(wrong_in_lock(&good, &[]), Vec::<String>::new());
        assert_eq!(wrong_in_lock(&good, &["vm-memory".into()]).len(), 1);
        let second = good.clone() + &package("vm-memory", "0.17.0", REGISTRY);
        assert_eq!(wrong_in_lock(&second, &[]).len(), 1);
        assert_eq!(wrong_in_lock(&package("a", "1.0.0", "git+https://example.org/a"), &[]).len(), 1);
    }

    #[test]
    fn arrays_are_read_from_their_own_table() {
        let toml = "[a]\nallow = [\"x\"]\n[licenses]\nallow = [\n  \"MIT\", # \"no\"\n  \"ISC\",\n]\nother = [\"y\"]\n";
        assert_eq!(strings(toml, "licenses", "allow"), ["MIT", "ISC"]);
        assert_eq!(strings(toml, "a", "allow"), ["x"]);
        assert_eq!(strings(toml, "a", "other"), Vec::<String>::new());
    }
}
