//! Keeps `docs/security.md` true: each requirement has a row, and the row names the files with its tests.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};

/// Requirements are numbered from 1 to this.
const REQUIREMENTS: u32 = 13;

/// Compares the table in `document` with the tests in `sources` (path and text).
///
/// # Errors
/// Lists each requirement without a row, each file named without such a test, and each test in a file that
/// its row does not name.
pub(crate) fn check(document: &str, sources: &BTreeMap<String, String>) -> Result<()> {
    let mut wrong = Vec::new();
    for id in 1..=REQUIREMENTS {
        let with = files_with_tests(id, sources);
        let named =
            named_files(id, document).with_context(|| format!("docs/security.md: no row of SEC-{id:02}"))?;
        let test = format!("sec_{id:02}_…");
        wrong.extend(
            with.difference(&named).map(|file| format!("SEC-{id:02} does not name {file}, with {test}")),
        );
        wrong.extend(named.difference(&with).map(|file| format!("SEC-{id:02} names {file}, without {test}")));
    }
    if !wrong.is_empty() {
        bail!("docs/security.md:\n    {}", wrong.join("\n    "));
    }
    Ok(())
}

fn files_with_tests(id: u32, sources: &BTreeMap<String, String>) -> BTreeSet<&str> {
    let test = format!("fn sec_{id:02}_");
    let with = sources.iter().filter(|(_, text)| text.lines().any(|line| declares(line, &test)));
    with.map(|(path, _)| path.as_str()).collect()
}

/// Whether the line is the head of a function whose name begins so.
fn declares(line: &str, test: &str) -> bool {
    let line = line.trim_start();
    line.strip_prefix("async ").unwrap_or(line).starts_with(test)
}

/// The paths of Rust files, in backquotes, of the table row of the requirement.
fn named_files(id: u32, document: &str) -> Option<BTreeSet<&str>> {
    let head = format!("| SEC-{id:02} |");
    let row = document.lines().find(|line| line.starts_with(&head))?;
    Some(row.split('`').filter(|word| word.ends_with(".rs") && word.contains('/')).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(first: &str) -> String {
        let others = (2..=REQUIREMENTS).map(|id| format!("| SEC-{id:02} | nothing |\n"));
        format!("| SEC-01 | {first} |\n{}", others.collect::<String>())
    }

    fn sources() -> BTreeMap<String, String> {
        let text = "#[test]\n    fn sec_01_a_guest_dies_alone() {}\n";
        BTreeMap::from([("io/src/a_test.rs".to_owned(), text.to_owned())])
    }

    #[test]
    fn a_row_names_exactly_the_files_with_its_tests() {
        assert!(check(&rows("`io/src/a_test.rs`"), &sources()).is_ok());
        assert!(check(&rows(""), &sources()).is_err());
        assert!(check(&rows("`io/src/a_test.rs`, `io/src/b_test.rs`"), &sources()).is_err());
        assert!(check(&rows("`io/src/a_test.rs`"), &BTreeMap::new()).is_err());
    }

    #[test]
    fn a_requirement_without_a_row_is_found() {
        assert!(check("| SEC-01 | |\n", &BTreeMap::new()).is_err());
    }
}
