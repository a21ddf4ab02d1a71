//! The rules of CONTRIBUTING that no lint of the compiler holds: sizes, and where `unsafe` may be written.

use crate::process::root;
use crate::security;
use crate::source::{Function, functions, has_word};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// No function is longer than this many lines.
const FUNCTION_LINES: usize = 80;
/// Nine functions in ten are at most this long.
const USUAL_FUNCTION_LINES: usize = 30;
/// No file is longer than this, tests (`_test.rs`, `tests/`) aside.
const FILE_LINES: usize = 450;
/// Where the code that runs on a host is. Guests (`examples/guests`) run on nothing and are not in it.
const FOLDERS: [&str; 7] = ["metrics", "io", "boot", "devices", "runtime", "tests", "examples"];
/// Folders in those that are not looked at.
const EXCLUDED: [&str; 3] = ["examples/guests", "tests/fuzz", "target"];
/// The files that may contain `unsafe`, each with its reason.
const UNSAFE_LIST: &str = "tests/xtask/unsafe-files";

/// Looks at every source file of the project.
///
/// # Errors
/// Lists everything that breaks a rule, as `file:line: what`.
pub(crate) fn check() -> Result<()> {
    let sources = sources(&root())?;
    let allowed = allowed_unsafe(&root())?;
    let mut wrong = Vec::new();
    let mut lengths = Vec::new();
    for (path, text) in &sources {
        let functions = functions(text);
        wrong.extend(too_long(path, text, &functions));
        if !is_test(path) {
            lengths.extend(functions.iter().map(|function| function.lines));
        }
    }
    wrong.extend(misplaced_unsafe(&sources, &allowed));
    let document = std::fs::read_to_string(root().join("docs/security.md")).context("docs/security.md")?;
    wrong.extend(security::check(&document, &sources).err().map(|error| error.to_string()));
    let usual = lengths.iter().filter(|&&lines| lines <= USUAL_FUNCTION_LINES).count();
    println!(
        "    {} files, {usual} of {} functions have ≤ {USUAL_FUNCTION_LINES} lines",
        sources.len(),
        lengths.len()
    );
    if usual * 10 < lengths.len() * 9 {
        wrong
            .push(format!("only {usual} of {} functions have ≤ {USUAL_FUNCTION_LINES} lines", lengths.len()));
    }
    if !wrong.is_empty() {
        bail!("{} breaches of style:\n    {}", wrong.len(), wrong.join("\n    "));
    }
    Ok(())
}

fn is_test(path: &str) -> bool {
    path.ends_with("_test.rs") || path.starts_with("tests/")
}

fn too_long(path: &str, text: &str, functions: &[Function]) -> Vec<String> {
    let mut wrong: Vec<String> = functions
        .iter()
        .filter(|function| function.lines > FUNCTION_LINES)
        .map(|f| format!("{path}:{}: `{}` has {} lines (> {FUNCTION_LINES})", f.line, f.name, f.lines))
        .collect();
    let lines = text.lines().count();
    if lines > FILE_LINES && !is_test(path) {
        wrong.push(format!("{path}: {lines} lines (> {FILE_LINES})"));
    }
    wrong
}

/// Files with `unsafe` that are not in the list, and entries of the list that have none.
fn misplaced_unsafe(sources: &BTreeMap<String, String>, allowed: &[String]) -> Vec<String> {
    let with: Vec<&String> =
        sources.iter().filter(|(_, text)| has_word(text, "unsafe")).map(|(path, _)| path).collect();
    let extra = with
        .iter()
        .filter(|path| !allowed.contains(path))
        .map(|path| format!("{path}: `unsafe` in a file that is not in {UNSAFE_LIST}"));
    let stale = allowed
        .iter()
        .filter(|path| !with.contains(path))
        .map(|path| format!("{UNSAFE_LIST}: {path} has no `unsafe` (any more)"));
    extra.chain(stale).collect()
}

/// The paths of the list: the first word of each line that is not empty or a comment.
fn allowed_unsafe(root: &Path) -> Result<Vec<String>> {
    let path = root.join(UNSAFE_LIST);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Path, relative to `root`, and text of every Rust file of the project.
fn sources(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    let mut sources = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() || EXCLUDED.iter().any(|excluded| folder.ends_with(excluded)) {
            continue;
        }
        for entry in
            std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                sources.insert(name, text);
            }
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mechanism is the list; the lint `unsafe_code = "deny"` alone can be lifted in any file.
    #[test]
    fn sec_06_unsafe_is_only_in_the_listed_files() {
        let sources = sources(&root()).unwrap();
        let allowed = allowed_unsafe(&root()).unwrap();
        assert_eq!(misplaced_unsafe(&sources, &allowed), Vec::<String>::new());
    }

    #[test]
    fn sec_06_unsafe_in_another_file_is_found() {
        let sources = BTreeMap::from([("io/src/a.rs".to_owned(), "fn f() { unsafe { g() } }".to_owned())]);
        assert_eq!(misplaced_unsafe(&sources, &[]).len(), 1);
        assert_eq!(misplaced_unsafe(&sources, &["io/src/a.rs".to_owned()]), Vec::<String>::new());
        assert_eq!(misplaced_unsafe(&BTreeMap::new(), &["io/src/a.rs".to_owned()]).len(), 1);
    }

    #[test]
    fn a_long_function_and_a_long_file_are_found() {
        let text = format!("fn f() {{\n{}}}\n", "g();\n".repeat(FILE_LINES));
        assert_eq!(too_long("io/src/a.rs", &text, &functions(&text)).len(), 2);
        assert_eq!(too_long("io/src/a_test.rs", &text, &functions(&text)).len(), 1);
    }
}
