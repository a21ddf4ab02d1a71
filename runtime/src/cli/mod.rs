//! The `ringlet` command: arguments in, exit status out. Everything it does is done by the library.

mod allocator;
mod bench;
mod disk;
mod limit;
mod limits_report;
mod log;
mod log_writer;
mod metrics_server;
mod net;
mod reload;
mod report;
mod run;
mod signals;
mod size;
mod stdin;
mod supervise;
mod tenant;
mod terminal;
mod vsock;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Styles};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use ringlet::{check, images};
use ringlet_metrics::Escaped;

use supervise::{LEAST_OPEN_FILES, SOCKET_OPEN_FILES};

/// What every part of the command fails with: a message for the user.
type CliResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Exit status when Ringlet itself failed, as opposed to the guest.
const FAILED: u8 = 125;

/// Runs small virtual machines on Linux/KVM.
#[derive(Debug, Parser)]
#[command(name = "ringlet", version, styles = styles(), max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Try `ringlet run hello`, or `ringlet check` if that does not work.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a VM in the foreground
    Run(Box<run::RunArgs>),
    /// Tell whether this host can run VMs, and what would mend it
    Check(CheckArgs),
    /// List the guest images that are part of this binary
    Images(ImagesArgs),
    /// Measure this host and Ringlet on it, and compare with the targets
    Bench(Box<bench::BenchArgs>),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page (troff; try `ringlet man | man -l -`)
    Man,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ImagesArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command line and returns the exit status.
pub(crate) fn main() -> ExitCode {
    allocator::configure();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let result = match cli.command {
        Command::Run(args) => supervise::run(&args),
        Command::Check(args) => print_check(&args),
        Command::Images(args) => print_images(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions { shell } => print_completions(shell),
        Command::Man => print_man(),
    };
    match result {
        Ok(status) => status,
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = error.to_string();
            let _ = writeln!(io::stderr(), "ringlet: {}{}", Escaped(&error), advice(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// What helps against an error of the system that any step may meet.
fn advice(error: &str) -> String {
    if !error.contains(&io::Error::from(rustix::io::Errno::MFILE).to_string()) {
        return String::new();
    }
    let limit = supervise::open_files_limit().map_or("unlimited".into(), |limit| limit.to_string());
    let (least, with_socket) = (LEAST_OPEN_FILES, LEAST_OPEN_FILES + SOCKET_OPEN_FILES);
    format!(
        ". The limit on open files is {limit}: raise it (`ulimit -n`); a VM takes at least {least}, and {with_socket} \
         with --vsock; `ringlet check` tells how many VMs it allows"
    )
}

/// Prints help and version, which are no errors, or what is wrong with the command line: as plain text, since an
/// argument may be the name of a file that somebody else made. The status must not look like a guest's exit code.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let mut stderr = io::stderr().lock();
    let text = error.render().to_string();
    for line in text.lines() {
        let _ = writeln!(stderr, "{}", Escaped(line));
    }
    if let Some(tip) = tip(error, &text) {
        let _ = writeln!(stderr, "\n  tip: {tip}");
    }
    ExitCode::from(FAILED)
}

/// What may have been meant, where the parser cannot know it. `text` is what it says.
fn tip(error: &clap::Error, text: &str) -> Option<String> {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = word(ContextKind::InvalidSubcommand)?;
            let image = images::IMAGES.iter().find(|image| image.name == word)?;
            Some(format!("`ringlet run {}` runs the image of that name", image.name))
        }
        ErrorKind::UnknownArgument if text.contains("[-- <ARGS>...]") => {
            let is_word = !word(ContextKind::InvalidArg)?.starts_with('-');
            is_word.then(|| "words for the guest come after `--`: ringlet run IMAGE -- WORD".into())
        }
        _ => None,
    }
}

/// The reader of our standard output has gone: nothing is left to do, and nothing is wrong.
fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let json = || error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    io.or_else(json) == Some(io::ErrorKind::BrokenPipe)
}

/// Prints `text` to the last byte; a reader who wants no more of it is no failure.
fn print_all(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn print_json(value: &impl serde::Serialize) -> CliResult<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(print_all(&text)?)
}

/// The status is the verdict, whether anybody reads the report or not.
fn print_check(args: &CheckArgs) -> CliResult<ExitCode> {
    let report = check::report();
    if args.json {
        print_json(&report)?;
    } else {
        let mut text = Vec::new();
        report.print(&mut text, io::stdout().is_terminal() && !log::no_color())?;
        print_all(&text)?;
    }
    Ok(if report.can_run() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_images(args: &ImagesArgs) -> CliResult<ExitCode> {
    if args.json {
        let list: Vec<_> = images::IMAGES
            .iter()
            .map(|image| serde_json::json!({"name": image.name, "about": image.about, "bytes": image.bytes.len()}))
            .collect();
        print_json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = Vec::new();
    for image in images::IMAGES {
        writeln!(text, "{:<14} {:>4} KiB  {}", image.name, image.bytes.len().div_ceil(1024), image.about)?;
    }
    print_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn print_completions(shell: Shell) -> CliResult<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringlet", &mut script);
    print_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn print_man() -> CliResult<ExitCode> {
    let mut page = Vec::new();
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let name = format!("ringlet-{}", verb.get_name());
        clap_mangen::Man::new(verb.clone().name(name)).render(&mut page)?;
    }
    print_all(&page)?;
    Ok(ExitCode::SUCCESS)
}

/// Colours of the help; clap uses them on a terminal only.
fn styles() -> Styles {
    Styles::styled()
        .header(AnsiColor::Green.on_default().bold())
        .usage(AnsiColor::Green.on_default().bold())
        .literal(AnsiColor::Cyan.on_default().bold())
        .placeholder(AnsiColor::Cyan.on_default())
}
