//! Child processes: started in the project's root, with a time limit, their failure told in full.

use anyhow::{Context, Result, bail};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit status of `timeout(1)` when it had to end the command.
const TIMED_OUT: i32 = 124;

/// The project's root folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// A command line with its environment and a limit in minutes.
pub(crate) struct Run {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    minutes: u32,
}

impl Run {
    /// `program`, relative to the project's root if it has a `/`.
    pub(crate) fn new(program: &str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { program: program.to_owned(), arguments, environment: Vec::new(), minutes: 10 }
    }

    /// The cargo that runs us.
    pub(crate) fn cargo(arguments: &[&str]) -> Self {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        Self::new(&cargo, arguments)
    }

    pub(crate) fn args(mut self, more: &[String]) -> Self {
        self.arguments.extend_from_slice(more);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn minutes(mut self, minutes: u32) -> Self {
        self.minutes = minutes;
        self
    }

    /// Runs to the end with our own standard streams.
    ///
    /// # Errors
    /// The command cannot be started, ends with another status than 0, or takes longer than its limit
    /// (its whole process group is ended then).
    pub(crate) fn run(&self) -> Result<()> {
        println!("    {self}");
        let status = self.command().status().with_context(|| format!("cannot start `{self}`"))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(TIMED_OUT) => bail!("`{self}` took longer than {} minutes", self.minutes),
            _ => bail!("`{self}`: {status}"),
        }
    }

    /// Like [`Run::run`], but returns what the command wrote to its standard output.
    pub(crate) fn output(&self) -> Result<String> {
        let output = self.command().output().with_context(|| format!("cannot start `{self}`"))?;
        if !output.status.success() {
            bail!("`{self}`: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command.current_dir(root());
        if std::io::stdin().is_terminal() {
            command.arg("--foreground"); // so that Ctrl-C reaches the command; then only itself is ended in time
        }
        command.arg("--kill-after=20").arg(format!("{}m", self.minutes));
        command.arg(&self.program).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in &self.environment {
            write!(f, "{name}={value:?} ")?;
        }
        let program = Path::new(&self.program);
        let short = if program.ends_with("cargo") { Path::new("cargo") } else { program };
        write!(f, "{}", short.display())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_the_workspace_manifest() {
        assert!(root().join("Cargo.lock").exists());
    }

    #[test]
    fn a_command_that_fails_or_is_missing_is_an_error() {
        assert!(Run::new("true", &[]).run().is_ok());
        assert!(Run::new("false", &[]).run().is_err());
        assert!(Run::new("/no/such/program", &[]).run().is_err());
        assert_eq!(Run::new("echo", &["a", "b"]).output().unwrap(), "a b\n");
    }
}
