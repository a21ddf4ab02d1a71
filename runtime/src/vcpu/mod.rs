//! vCPU threads: enter the guest, serve its exits, obey the host.
//!
//! A thread owns its vCPU's file descriptor from creation to end; nobody else calls an ioctl on it. It never
//! touches a device's state except through the buses, and executes the [`Action`] that an access asks for after
//! every lock is released.

mod bell;
mod clock;
pub(crate) mod control;
mod history;
mod setup;
mod target;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use ringlet_boot::VcpuInit;
use ringlet_devices::{Action, Then, Wait};
use ringlet_metrics::{ExitKind, GuestErrorKind, guest_error};

use crate::error::{Error, Result};
use crate::kvm::Host;
use crate::kvm::sys::{self, PortAccess, Thread};
use crate::machine::Machine;
use crate::outcome::{Crash, CrashCause, Outcome, Registers, VcpuReport};
use clock::CpuClock;
use control::{Control, Flow};
use history::{ExitRecord, History};

/// Stack of a vCPU thread in bytes. Its deepest path formats a crash report.
const STACK_SIZE: usize = 192 << 10;

/// CS and RIP of an x86 processor after reset.
const RESET_VECTOR: (u16, u64) = (0xF000, 0xFFF0);

/// A vCPU's requests, status and end.
pub(crate) type VcpuControl = Control<Thread, VcpuEnd>;

/// What a vCPU thread leaves behind.
#[derive(Debug)]
pub(crate) struct VcpuEnd {
    /// Why the VM ends; `None` if the vCPU was told to stop.
    pub(crate) outcome: Option<Outcome>,
    /// Where the vCPU was.
    pub(crate) report: VcpuReport,
}

/// All that a vCPU thread starts with.
pub(crate) struct VcpuSeed {
    pub(crate) index: u32,
    pub(crate) fd: VcpuFd,
    pub(crate) machine: Arc<Machine>,
    pub(crate) control: Arc<VcpuControl>,
    pub(crate) host: Arc<Host>,
    pub(crate) vcpus: u32,
    /// Where the boot vCPU's registers come from once the image is loaded; the others wait for INIT and SIPI.
    pub(crate) init: Option<Receiver<VcpuInit>>,
}

/// Starts the thread, which prepares the vCPU meanwhile. The vCPU is paused until it is asked to run.
pub(crate) fn spawn(seed: VcpuSeed) -> Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name(format!("ringlet-vcpu-{}", seed.index));
    builder
        .stack_size(STACK_SIZE)
        .spawn(move || thread_main(seed))
        .map_err(|source| Error::Thread { what: "a vCPU", source })
}

/// A panic here is a bug of ours; it ends this VM, not its neighbours.
fn thread_main(seed: VcpuSeed) {
    let control = Arc::clone(&seed.control);
    let index = seed.index;
    match catch_unwind(AssertUnwindSafe(|| serve(seed))) {
        Ok((end, vcpu)) => {
            control.finish(end);
            // Closing it takes a while, for which nobody has to wait.
            drop(vcpu);
        }
        Err(_) => control.finish(VcpuEnd {
            outcome: Some(Outcome::Failed { error: format!("the thread of vCPU {index} panicked") }),
            report: VcpuReport { index, ..VcpuReport::default() },
        }),
    }
}

fn serve(seed: VcpuSeed) -> (VcpuEnd, Vcpu) {
    let ready = Thread::enter_vcpu(&seed.fd)
        .map_err(Error::io("preparing a vCPU thread's signals"))
        .and_then(|thread| seed.machine.cpu.join(seed.index).map(|()| thread))
        .and_then(|thread| setup::prepare(&seed).map(|prepared| prepared.then_some(thread)));
    let clock = CpuClock::start(&seed);
    let VcpuSeed { index, fd, machine, control, .. } = seed;
    let mut vcpu =
        Vcpu { fd, seat: Seat { index, machine, control }, history: History::default(), refusals: 0 };
    let outcome = match ready {
        Ok(Some(thread)) => {
            vcpu.seat.control.arrive(thread);
            vcpu.run()
        }
        Ok(None) => None,
        Err(error) => Some(Outcome::Failed { error: format!("vCPU {index}: {error}") }),
    };
    drop(clock);
    (VcpuEnd { outcome, report: vcpu.report() }, vcpu)
}

/// A vCPU in service.
struct Vcpu {
    fd: VcpuFd,
    seat: Seat,
    history: History,
    /// How often in a row `KVM_RUN` has said that it should be tried again.
    refusals: u32,
}

/// So many refusals in a row are tried again at once, later ones after [`REFUSED_PAUSE`].
const REFUSALS: u32 = 10;
const REFUSED_PAUSE: Duration = Duration::from_millis(1);
/// After so many, the first vCPU gives up: a second later.
const REFUSED_FOR_GOOD: u32 = 1000;

/// A vCPU's place in its VM.
struct Seat {
    index: u32,
    machine: Arc<Machine>,
    control: Arc<VcpuControl>,
}

/// What an exit leads to.
enum Step {
    /// Enter the guest again.
    Again,
    /// `KVM_RUN` was interrupted, by a kick or by `immediate_exit`.
    Interrupted,
    /// The host wants the vCPU to stop.
    Stop,
    /// The VM is over.
    End(Outcome),
}

impl Vcpu {
    /// Serves the vCPU until it ends (`Some`) or is told to stop (`None`).
    fn run(&mut self) -> Option<Outcome> {
        let Seat { index, machine, control } = &self.seat;
        if control.park() == Flow::Stop || machine.cpu.obtain(*index) == Flow::Stop {
            return None;
        }
        loop {
            let flow = self.seat.control.poll();
            if flow == Flow::Stop {
                return None;
            }
            // While pausing, and without CPU time, KVM_RUN only completes the access in progress (KVM API, section 5,
            // immediate_exit).
            let held = flow == Flow::Pause || self.seat.machine.cpu.must_look(self.seat.index);
            self.fd.set_kvm_immediate_exit(u8::from(held));
            match self.enter() {
                Step::Again => {}
                Step::Interrupted => {
                    let (seat, mut by_timer) = (&self.seat, false);
                    let kicked = seat.control.kick_arrived(|| by_timer = Thread::eat_kick());
                    if by_timer && !kicked {
                        seat.machine.metrics.cpu_timer_exits.inc();
                    }
                    if flow == Flow::Pause && seat.control.park() == Flow::Stop {
                        return None;
                    }
                    // After a pause, too: a timer may have been due meanwhile.
                    if seat.machine.cpu.obtain(seat.index) == Flow::Stop {
                        return None;
                    }
                }
                Step::Stop => return None,
                Step::End(outcome) => return Some(outcome),
            }
        }
    }

    /// One `KVM_RUN` and what follows from it.
    fn enter(&mut self) -> Step {
        let Self { fd, seat, history, refusals } = self;
        let machine = &seat.machine;
        let exit = fd.run();
        let refused = exit.as_ref().is_err_and(|error| error.errno() == libc::EAGAIN);
        *refusals = if refused { refusals.saturating_add(1) } else { 0 };
        machine.phases.exited();
        match exit {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => self.port_access(),
            Ok(VcpuExit::MmioRead(address, data)) => {
                history.record(record("read of address", address, data.len()));
                machine.metrics.exits.inc(ExitKind::MmioRead);
                seat.access(|| machine.mmio.read(address, data, &machine.log))
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                history.record(record("write to address", address, data.len()));
                machine.metrics.exits.inc(ExitKind::MmioWrite);
                seat.access(|| machine.mmio.write(address, data, &machine.log))
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                history.record(record("EOI of vector", u64::from(vector), 0));
                machine.metrics.exits.inc(ExitKind::IoapicEoi);
                machine.ioapic.inject(machine.ioapic.end_of_interrupt(vector));
                Step::Again
            }
            Ok(VcpuExit::Intr) => Step::Interrupted,
            Err(error) if error.errno() == libc::EINTR => {
                machine.metrics.exits.inc(ExitKind::Interrupted);
                Step::Interrupted
            }
            Err(_) if refused => seat.refused(*refusals),
            Ok(VcpuExit::Shutdown) => self.crash(ExitKind::Shutdown, CrashCause::TripleFault),
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                self.crash(ExitKind::FailEntry, CrashCause::FailEntry { reason, cpu })
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                self.crash(ExitKind::Other, CrashCause::MemoryFault { gpa: Some(gpa) })
            }
            Err(error) if error.errno() == libc::EFAULT => {
                self.crash(ExitKind::Other, CrashCause::MemoryFault { gpa: None })
            }
            Ok(other) => {
                let error = format!("unexpected KVM exit {other:?}");
                let kind = match other {
                    VcpuExit::Hypercall(_) => ExitKind::Hypercall,
                    VcpuExit::SystemEvent(..) => ExitKind::SystemEvent,
                    _ => ExitKind::Other,
                };
                seat.fail(kind, error)
            }
            Err(error) => seat.fail(ExitKind::Other, format!("KVM_RUN: {error}")),
        }
    }

    /// Serves a port access element by element: a string instruction brings several at once.
    fn port_access(&mut self) -> Step {
        let Self { fd, seat, history, .. } = self;
        let Some((access, data)) = sys::port_access(fd) else {
            return seat.fail(ExitKind::Other, "KVM reported a port access without one".into());
        };
        let PortAccess { port, size, write } = access;
        let what = if write { "write to port" } else { "read of port" };
        history.record(record(what, u64::from(port), usize::from(size)));
        seat.machine.metrics.exits.inc(if write { ExitKind::PioWrite } else { ExitKind::PioRead });
        for element in data.chunks_exact_mut(usize::from(size).max(1)) {
            match seat.port_element(u64::from(port), write, element) {
                Step::Again => {}
                step => return step,
            }
        }
        Step::Again
    }

    fn internal_error(&mut self) -> Step {
        let (suberror, data) = sys::internal_error(self.fd.get_kvm_run());
        let registers = registers(&self.fd).unwrap_or_default();
        let in_ram = !self.instruction_at(registers.rip).is_empty();
        let meaning = self.seat.machine.describe_internal_error(suberror, registers.cs & 3, in_ram);
        self.crash(ExitKind::InternalError, CrashCause::InternalError { suberror, meaning, data })
    }

    fn crash(&mut self, kind: ExitKind, cause: CrashCause) -> Step {
        self.seat.machine.metrics.exits.inc(kind);
        let mut vcpu = self.report();
        // SVM leaves a vCPU that shut down undefined, so KVM resets it: where it was is not to be had.
        let was_reset = (vcpu.registers.cs, vcpu.registers.rip) == RESET_VECTOR;
        let instruction = if cause == CrashCause::TripleFault && was_reset {
            vcpu.last_exits.push("shutdown, which reset the registers".into());
            String::new()
        } else {
            self.instruction_at(vcpu.registers.rip)
        };
        Step::End(Outcome::Crashed(Box::new(Crash { cause, vcpu, instruction })))
    }

    fn report(&self) -> VcpuReport {
        VcpuReport {
            index: self.seat.index,
            registers: registers(&self.fd).unwrap_or_default(),
            last_exits: self.history.describe(),
        }
    }

    /// Up to 15 bytes at a guest-virtual address, in hexadecimal; fewer at the end of a page or of RAM.
    fn instruction_at(&self, rip: u64) -> String {
        let Ok(translation) = self.fd.translate_gva(rip) else { return String::new() };
        if translation.valid == 0 {
            return String::new();
        }
        let address = translation.physical_address;
        let mut bytes = [0; 15];
        let page_left = usize::try_from(0x1000 - (address & 0xfff)).unwrap_or(0).min(bytes.len());
        let Some(bytes) = bytes.get_mut(..page_left) else { return String::new() };
        match self.seat.machine.ram.read(address, bytes) {
            Ok(()) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
            Err(_) => String::new(),
        }
    }
}

impl Seat {
    /// One element of a port access.
    fn port_element(&self, port: u64, write: bool, element: &mut [u8]) -> Step {
        let Machine { ports, log, .. } = &*self.machine;
        if write {
            self.access(|| ports.write(port, element, log))
        } else {
            self.access(|| ports.read(port, element, log))
        }
    }

    /// Makes an access and does what it asks for. Where the shard has to do something first, the vCPU waits here, and
    /// makes the very same access again if it was not taken.
    fn access(&self, mut make: impl FnMut() -> Action) -> Step {
        loop {
            let (flow, then) = match make() {
                Action::WaitForSerial => {
                    let output = &self.machine.serial_output;
                    (self.control.wait_for_shard(|| output.has_room()), Then::Repeat)
                }
                Action::Wait(wait) => (self.wait_for_device(&wait), wait.then()),
                action => return self.act(action),
            };
            match (flow, then) {
                (Flow::Stop, _) => return Step::Stop,
                (_, Then::Done) => return Step::Again,
                (_, Then::Repeat) => {}
            }
        }
    }

    /// Waits until a device on the shard has done what a register write asked for, and then for as long as that write
    /// costs.
    fn wait_for_device(&self, wait: &Wait) -> Flow {
        let flow = self.control.wait_for_shard(|| wait.is_over());
        if flow == Flow::Stop || wait.then() == Then::Repeat {
            return flow;
        }
        let Some(until) = self.machine.charge_slow_write(Instant::now()) else { return flow };
        let (log, kind) = (&self.machine.log, GuestErrorKind::SlowWriteRate);
        guest_error!(log, kind, "registers that cost the host work are written too fast");
        self.control.wait_until(until)
    }

    /// Does what an access asked for.
    fn act(&self, action: Action) -> Step {
        match action {
            Action::None | Action::WaitForSerial | Action::Wait(_) => Step::Again,
            Action::Exit(code) => Step::End(Outcome::Exited { code }),
            Action::Reset => Step::End(Outcome::Reset),
            Action::Ready => {
                self.machine.phases.ready();
                Step::Again
            }
            Action::Routes => match self.machine.routing.install(Instant::now()) {
                Ok(None) => Step::Again,
                Ok(Some(until)) => self.pay_for_routes(until),
                Err(error) => self.fail(ExitKind::Other, error.to_string()),
            },
        }
    }

    /// The guest changes routes faster than it may: the vCPU waits.
    fn pay_for_routes(&self, until: Instant) -> Step {
        guest_error!(self.machine.log, GuestErrorKind::IoapicRate, "I/O APIC entries are rewritten too fast");
        match self.control.wait_until(until) {
            Flow::Stop => Step::Stop,
            Flow::Run | Flow::Pause => Step::Again,
        }
    }

    /// `KVM_RUN` has said EAGAIN `times` in a row. It does so once when a vCPU that another one has to start was woken, which
    /// a guest can do again and again, and whenever the kernel has no thread for the VM (`kvm-nx-lpage-recovery`). Neither
    /// keeps a CPU busy; and as the first vCPU waits for no other, it does not try for ever.
    fn refused(&self, times: u32) -> Step {
        if times > REFUSED_FOR_GOOD && self.index == 0 {
            let error =
                "KVM_RUN: EAGAIN, again and again. Has the kernel no thread for the VM (`ringlet check`)?";
            return self.fail(ExitKind::Other, error.into());
        }
        if times > REFUSALS {
            thread::sleep(REFUSED_PAUSE);
        }
        self.machine.metrics.exits.inc(ExitKind::Interrupted);
        Step::Interrupted
    }

    fn fail(&self, kind: ExitKind, error: String) -> Step {
        self.machine.metrics.exits.inc(kind);
        Step::End(Outcome::Failed { error: format!("vCPU {}: {error}", self.index) })
    }
}

fn record(what: &'static str, address: u64, width: usize) -> ExitRecord {
    ExitRecord { what, address, width: u8::try_from(width).unwrap_or(u8::MAX) }
}

/// The registers of a vCPU that is not in the guest.
fn registers(fd: &VcpuFd) -> Result<Registers, kvm_ioctls::Error> {
    let general = fd.get_regs()?;
    let special = fd.get_sregs()?;
    Ok(Registers {
        rip: general.rip,
        rflags: general.rflags,
        rax: general.rax,
        rbx: general.rbx,
        rcx: general.rcx,
        rdx: general.rdx,
        rsi: general.rsi,
        rdi: general.rdi,
        rsp: general.rsp,
        rbp: general.rbp,
        r8: general.r8,
        r9: general.r9,
        r10: general.r10,
        r11: general.r11,
        r12: general.r12,
        r13: general.r13,
        r14: general.r14,
        r15: general.r15,
        cs: special.cs.selector,
        cr0: special.cr0,
        cr2: special.cr2,
        cr3: special.cr3,
        cr4: special.cr4,
        efer: special.efer,
    })
}
