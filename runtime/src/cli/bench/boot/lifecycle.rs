//! One VM after the other in one process: from its making to its first byte, and to its end.

use ringlet::Runtime;

use super::super::launched::{Launched, brief, executor, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::Effort;
use crate::cli::CliResult;

const GROUP: &str = "A VM in a running process, create to …";
/// VMs that do not count: the first ones start threads and fill caches.
const WARM_UP: usize = 10;
/// Measures lives one at a time.
pub(super) fn measure(runtime: &Runtime, effort: Effort, report: &mut Report) -> CliResult<()> {
    super::super::progress("VMs one after the other");
    let (config, executor) = (brief(), executor()?);
    let (mut made, mut first_byte, mut gone) = (Samples::default(), Samples::default(), Samples::default());
    for number in 0..WARM_UP + effort.lives {
        let life = executor.block_on(Launched::new(runtime, &config)?.live())?;
        if number >= WARM_UP {
            made.push_time(life.made);
            first_byte.push_time(life.first_byte);
            gone.push_time(life.gone);
        }
    }
    settle(runtime);
    report.add(Figure::new("life.made", GROUP, "made (the call returns)", Unit::Seconds, &made));
    report.add(Figure::new("life.first_byte", GROUP, "first byte", Unit::Seconds, &first_byte));
    report.add(Figure::new("life.gone", GROUP, "gone (outcome known)", Unit::Seconds, &gone));
    Ok(())
}
