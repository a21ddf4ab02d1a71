//! Runs named steps one after the other and keeps the score.

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What a step does; an error is its failure.
pub(crate) type Action = Box<dyn Fn() -> anyhow::Result<()>>;

/// One named step.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
}

impl Step {
    pub(crate) fn new(name: &'static str, action: impl Fn() -> anyhow::Result<()> + 'static) -> Self {
        Self { name, action: Box::new(action) }
    }
}

/// The result of every step that has run.
#[derive(Default)]
pub(crate) struct Score {
    results: Vec<(&'static str, Duration, bool)>,
}

impl Score {
    /// Runs `step`, prints its name before, and its duration and result after.
    pub(crate) fn run(&mut self, step: &Step) {
        println!("==> {}", step.name);
        let started = Instant::now();
        let result = (step.action)();
        let took = started.elapsed();
        match &result {
            Ok(()) => println!("<== {}: passed in {:.1} s\n", step.name, took.as_secs_f64()),
            Err(error) => println!("<== {}: FAILED in {:.1} s: {error:#}\n", step.name, took.as_secs_f64()),
        }
        self.results.push((step.name, took, result.is_ok()));
    }

    /// Prints the table and, as the last line, `N passed, N failed`; fails if a step failed or none ran.
    pub(crate) fn finish(&self) -> ExitCode {
        for (name, took, passed) in &self.results {
            let result = if *passed { "passed" } else { "FAILED" };
            println!("{result}  {:8.1} s  {name}", took.as_secs_f64());
        }
        println!("{} passed, {} failed", self.passed(), self.failed());
        if self.failed() == 0 && self.passed() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn passed(&self) -> usize {
        self.results.iter().filter(|(_, _, passed)| *passed).count()
    }

    fn failed(&self) -> usize {
        self.results.len() - self.passed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_whole_and_the_others_still_run() {
        let mut score = Score::default();
        score.run(&Step::new("bad", || anyhow::bail!("no")));
        score.run(&Step::new("good", || Ok(())));
        assert_eq!((score.passed(), score.failed()), (1, 1));
        assert_eq!(format!("{:?}", score.finish()), format!("{:?}", ExitCode::FAILURE));
    }

    #[test]
    fn nothing_run_is_no_success() {
        let score = Score::default();
        assert_eq!(format!("{:?}", score.finish()), format!("{:?}", ExitCode::FAILURE));
    }
}
