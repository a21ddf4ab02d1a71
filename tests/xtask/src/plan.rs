//! Which steps each command is made of.
//!
//! The steps of `ci` take less than an hour together on two cores that start with nothing compiled.

use crate::process::{Run, root};
use crate::steps::{Score, Step};
use crate::{dependencies, soak, style};
use anyhow::{Result, ensure};
use std::process::ExitCode;

/// Crates with loom tests.
const LOOM_PACKAGES: [&str; 3] = ["ringlet-io", "ringlet-devices", "ringlet"];
/// Cargo workspaces of their own, which `--workspace` does not reach.
const OTHER_WORKSPACES: [&str; 2] = ["examples/guests/Cargo.toml", "tests/fuzz/Cargo.toml"];
/// The benchmarks, each run with `--quick`: that they work, not what they say.
const BENCHES: [&str; 7] = ["boot", "block", "net", "vsock", "density", "victim", "limiter"];
/// Seconds of fuzzing of each target in `ci`.
const FUZZ_SECONDS: &str = "30";

/// Steps of `check`.
pub(crate) fn check() -> Vec<Step> {
    vec![format(), style(), clippy(), unit_tests()]
}

/// Steps of `test`; `arguments` are passed on to `cargo test`.
pub(crate) fn test(arguments: &[String]) -> Vec<Step> {
    vec![setup(), tests(arguments.to_vec())]
}

/// Steps of `ci`: the ones that fail soonest first.
pub(crate) fn ci() -> Vec<Step> {
    vec![
        setup(),
        format(),
        style(),
        Step::new("dependencies", dependencies::check),
        clippy(),
        docs(),
        tests(Vec::new()),
        loom(),
        release(),
        Step::new("bench", || BENCHES.iter().try_for_each(|name| bench(name))),
        Step::new("template", || Run::new("tests/template", &[]).minutes(5).run()),
        Step::new("soak", soak::run),
        Step::new("fuzz", || Run::new("tests/fuzz/run", &[FUZZ_SECONDS]).minutes(20).run()),
        Step::new("nested", || Run::new("tests/nested/run", &[]).minutes(23).run()),
    ]
}

/// Runs all of `steps`, or those named in `only`; unknown names are an error.
pub(crate) fn run(steps: &[Step], only: &[String]) -> ExitCode {
    if let Some(unknown) = only.iter().find(|name| !steps.iter().any(|step| step.name == **name)) {
        eprintln!("there is no step `{unknown}`; `cargo xtask list` names them");
        return ExitCode::from(2);
    }
    let mut score = Score::default();
    for step in steps.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)) {
        score.run(step);
    }
    score.finish()
}

/// Prints the names of `steps`.
pub(crate) fn list(steps: &[Step]) -> ExitCode {
    steps.iter().for_each(|step| println!("{}", step.name));
    ExitCode::SUCCESS
}

/// The style step alone.
pub(crate) fn style() -> Step {
    Step::new("style", style::check)
}

fn setup() -> Step {
    Step::new("setup", || Run::new("tests/setup", &[]).run())
}

fn format() -> Step {
    Step::new("format", || {
        Run::cargo(&["fmt", "--all", "--check"]).run()?;
        for manifest in OTHER_WORKSPACES {
            ensure!(root().join(manifest).exists(), "{manifest} is not there");
            Run::cargo(&["fmt", "--manifest-path", manifest, "--all", "--check"]).run()?;
        }
        Ok(())
    })
}

fn clippy() -> Step {
    Step::new("clippy", || {
        Run::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).minutes(20).run()?;
        // The guests cannot be built for tests: they have no standard library.
        let guests = ["clippy", "--release", "--manifest-path", "examples/guests/Cargo.toml"];
        Run::cargo(&guests)
            .args(&["--target-dir", "target/guests", "--", "-D", "warnings"].map(str::to_owned))
            .run()
    })
}

fn docs() -> Step {
    Step::new("docs", || {
        let doc = Run::cargo(&["doc", "--workspace", "--no-deps"]);
        doc.env("RUSTDOCFLAGS", "-D warnings").run()
    })
}

fn unit_tests() -> Step {
    Step::new("unit tests", || Run::cargo(&["test", "--workspace", "--lib", "--bins"]).run())
}

fn tests(arguments: Vec<String>) -> Step {
    Step::new("test", move || Run::cargo(&["test", "--workspace"]).args(&arguments).minutes(25).run())
}

fn loom() -> Step {
    Step::new("loom", || LOOM_PACKAGES.iter().try_for_each(|package| loom_of(package)))
}

/// The loom tests of one package: those with `loom` in their path. A flag of our own, since `--cfg loom`
/// takes tokio's network away; a target folder of their own, since a flag changes every crate.
fn loom_of(package: &str) -> Result<()> {
    let test = |more: &[&str]| {
        let test = Run::cargo(&["test", "--release", "--lib", "--package", package, "loom"]);
        let test = test.env("RUSTFLAGS", "--cfg ringlet_loom").env("CARGO_TARGET_DIR", "target/loom");
        test.args(&more.iter().map(|&argument| argument.to_owned()).collect::<Vec<_>>()).minutes(15)
    };
    let listed = test(&["--", "--list"]).output()?;
    ensure!(listed.lines().any(|line| line.ends_with(": test")), "{package} has no loom tests");
    test(&[]).run()
}

fn bench(name: &str) -> Result<()> {
    Run::cargo(&["run", "--release", "--", "bench", name, "--quick"]).run()
}

fn release() -> Step {
    Step::new("release", || Run::cargo(&["build", "--release"]).minutes(20).run())
}
