//! The project's own commands, as `cargo xtask COMMAND`.
//!
//! * `check`: what to run before every commit; under a minute when the build is warm.
//! * `test`: installs the packages that the tests need, then runs the whole test suite.
//! * `ci`: everything that a change has to pass, in one command (`.ci/run` calls it).
//! * `style`: the rules that no lint of the compiler can hold (sizes, where `unsafe` may be).
//!
//! It owns the list of steps and their time limits. It never skips a step: what cannot run has failed.

mod dependencies;
mod plan;
mod process;
mod security;
mod soak;
mod source;
mod steps;
mod style;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  check          fast checks before a commit: format, style, clippy, unit tests
  test [ARGS]    install what the tests need (apt), then `cargo test --workspace ARGS`
  ci             everything a change has to pass
  ci STEP...     only the named steps of it
  list           the steps of ci
  style          sizes and unsafe code only
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", [].as_slice()),
    };
    match (command, rest) {
        ("check", []) => plan::run(&plan::check(), &[]),
        ("test", rest) => plan::run(&plan::test(rest), &[]),
        ("ci", rest) => plan::run(&plan::ci(), rest),
        ("style", []) => plan::run(&[plan::style()], &[]),
        ("list", []) => plan::list(&plan::ci()),
        ("help" | "--help" | "-h", _) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("cargo xtask: cannot do `{}`\n\n{USAGE}", arguments.join(" "));
            ExitCode::from(2)
        }
    }
}
