//! The real state machine under every interleaving that loom finds. `KVM_RUN` is modelled by what matters here: it
//! returns only for a kick, whose signal stays pending until it is eaten. A lost kick or a lost wake-up is a deadlock,
//! which loom reports. Run with `RUSTFLAGS="--cfg ringlet_loom" cargo test --release --lib -p ringlet loom`.

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::{Control, Flow, KickTarget, Request, Status};

/// A flag that a thread sleeps on and another sets.
#[derive(Clone)]
struct Flag(Arc<(Mutex<bool>, Condvar)>);

impl Flag {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn set(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }

    fn wait(&self) {
        let mut set = self.0.0.lock().unwrap();
        while !*set {
            set = self.0.1.wait(set).unwrap();
        }
    }

    fn clear(&self) {
        *self.0.0.lock().unwrap() = false;
    }
}

/// A vCPU thread's signal, and whether that thread is still there to get it.
#[derive(Clone)]
struct Signal {
    pending: Flag,
    gone: Arc<AtomicBool>,
}

impl KickTarget for Signal {
    fn kick(&self) {
        assert!(!self.gone.load(Ordering::SeqCst), "a signal to a thread that is gone");
        self.pending.set();
    }
}

/// One vCPU, and what its thread and its controller share.
#[derive(Clone)]
struct Model {
    control: Arc<Control<Signal, u32>>,
    changed: Flag,
    signal: Signal,
}

impl Model {
    fn new() -> Self {
        let changed = Flag::new();
        let bell = changed.clone();
        let control = Arc::new(Control::new(Box::new(move || bell.set())));
        let signal = Signal { pending: Flag::new(), gone: Arc::new(AtomicBool::new(false)) };
        Self { control, changed, signal }
    }

    /// What `Vcpu::run` does, with a guest that never leaves by itself; `guest` is told when it is entered.
    fn serve(&self, guest: impl Fn()) {
        self.control.arrive(self.signal.clone());
        self.run(guest);
        self.leave(0);
    }

    fn run(&self, guest: impl Fn()) {
        if self.control.park() == Flow::Stop {
            return;
        }
        loop {
            match self.control.poll() {
                Flow::Stop => return,
                // `immediate_exit`: KVM_RUN returns without entering the guest.
                Flow::Pause => {
                    self.control.kick_arrived(|| self.signal.pending.clear());
                    if self.control.park() == Flow::Stop {
                        return;
                    }
                }
                Flow::Run => {
                    guest();
                    self.signal.pending.wait();
                    self.control.kick_arrived(|| self.signal.pending.clear());
                }
            }
        }
    }

    fn leave(&self, end: u32) {
        self.control.finish(end);
        self.signal.gone.store(true, Ordering::SeqCst);
    }

    /// What the lifecycle task does: looks again after every change.
    fn until(&self, true_of: impl Fn(&Control<Signal, u32>) -> bool) {
        while !true_of(&self.control) {
            self.changed.wait();
            self.changed.clear();
        }
    }
}

/// Every interleaving.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = None;
    builder.check(test);
}

/// Every interleaving with at most four preemptions, for models of which there are too many.
fn large_model(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(test);
}

/// Starts the vCPU's thread.
fn spawn(model: &Model, serve: impl FnOnce(Model) + 'static) -> thread::JoinHandle<()> {
    let model = model.clone();
    thread::spawn(move || serve(model))
}

#[test]
fn a_kick_is_never_lost_whatever_came_before() {
    for requests in [
        [Request::Run, Request::Pause, Request::Run],
        [Request::Pause, Request::Run, Request::Pause],
        [Request::Run, Request::Run, Request::Pause],
    ] {
        large_model(move || {
            let vcpu = Model::new();
            vcpu.control.ask(Request::Run);
            let thread = spawn(&vcpu, |vcpu| vcpu.serve(|| ()));
            for request in requests {
                vcpu.control.ask(request);
            }
            vcpu.control.ask(Request::Stop);
            thread.join().unwrap();
            assert_eq!(vcpu.control.status(), Status::Finished);
        });
    }
}

#[test]
fn a_pause_comes_true_and_nothing_runs_until_the_resume() {
    large_model(|| {
        let vcpu = Model::new();
        let at_rest = Arc::new(AtomicBool::new(false));
        vcpu.control.ask(Request::Run);
        let guest_at_rest = Arc::clone(&at_rest);
        let thread = spawn(&vcpu, move |vcpu| {
            vcpu.serve(|| {
                assert!(!guest_at_rest.load(Ordering::SeqCst), "the guest ran while it was paused")
            });
        });
        vcpu.control.ask(Request::Pause);
        vcpu.until(|control| control.is_parked());
        at_rest.store(true, Ordering::SeqCst);
        thread::yield_now();
        at_rest.store(false, Ordering::SeqCst);
        vcpu.control.ask(Request::Run);
        vcpu.control.ask(Request::Stop);
        thread.join().unwrap();
    });
}

#[test]
fn a_stop_is_final_whatever_another_asks() {
    large_model(|| {
        let vcpu = Model::new();
        let thread = spawn(&vcpu, |vcpu| vcpu.serve(|| ()));
        let other = vcpu.clone();
        let asker = thread::spawn(move || other.control.ask(Request::Run));
        vcpu.control.ask(Request::Stop);
        asker.join().unwrap();
        thread.join().unwrap();
        assert_eq!(vcpu.control.poll(), Flow::Stop);
    });
}

#[test]
fn a_pause_that_meets_the_end_is_answered_and_kicks_nobody() {
    model(|| {
        let vcpu = Model::new();
        vcpu.control.ask(Request::Run);
        let thread = spawn(&vcpu, |vcpu| {
            vcpu.control.arrive(vcpu.signal.clone());
            if vcpu.control.park() == Flow::Run && vcpu.control.poll() == Flow::Run {
                // The guest exits with code 7 by itself.
                return vcpu.leave(7);
            }
            // It is paused before it comes that far.
            vcpu.run(|| ());
            vcpu.leave(0);
        });
        vcpu.control.ask(Request::Pause);
        vcpu.until(|control| control.is_parked());
        let ended = vcpu.control.status() == Status::Finished;
        let end = vcpu.control.take_end();
        assert_eq!(end, ended.then_some(7));
        vcpu.control.ask(Request::Stop);
        thread.join().unwrap();
        assert_eq!(vcpu.control.take_end(), (!ended).then_some(0));
    });
}

/// A vCPU whose guest prints one byte, for which there is room only after the shard has replied.
fn printer(vcpu: &Model, room: &Arc<AtomicBool>, printed: impl FnOnce() + 'static) -> thread::JoinHandle<()> {
    let room = Arc::clone(room);
    spawn(vcpu, move |vcpu| {
        vcpu.control.arrive(vcpu.signal.clone());
        if vcpu.control.park() == Flow::Run
            && vcpu.control.wait_for_shard(|| room.load(Ordering::SeqCst)) == Flow::Run
        {
            assert!(room.load(Ordering::SeqCst), "it went on without room");
            printed();
            vcpu.run_on();
        }
        vcpu.leave(0);
    })
}

impl Model {
    /// As [`Model::run`], for a thread that is past its first parking.
    fn run_on(&self) {
        while self.control.poll() != Flow::Stop {
            if self.control.poll() == Flow::Pause {
                self.control.kick_arrived(|| self.signal.pending.clear());
                let _ = self.control.park();
            } else {
                self.signal.pending.wait();
                self.control.kick_arrived(|| self.signal.pending.clear());
            }
        }
    }
}

#[test]
fn the_shards_reply_always_wakes_the_vcpu() {
    model(|| {
        let (vcpu, room, printed) = (Model::new(), Arc::new(AtomicBool::new(false)), Flag::new());
        vcpu.control.ask(Request::Run);
        let done = printed.clone();
        let thread = printer(&vcpu, &room, move || done.set());
        room.store(true, Ordering::SeqCst);
        vcpu.control.shard_replied();
        printed.wait();
        vcpu.control.ask(Request::Stop);
        thread.join().unwrap();
    });
}

#[test]
fn a_vcpu_that_waits_for_the_shard_counts_as_paused_and_consumes_the_reply_on_resume() {
    large_model(|| {
        let (vcpu, room, printed) = (Model::new(), Arc::new(AtomicBool::new(false)), Flag::new());
        let at_rest = Arc::new(AtomicBool::new(false));
        vcpu.control.ask(Request::Run);
        let (done, resting) = (printed.clone(), Arc::clone(&at_rest));
        let thread = printer(&vcpu, &room, move || {
            assert!(!resting.load(Ordering::SeqCst), "the guest went on while it was paused");
            done.set();
        });
        let (shard, shard_room) = (vcpu.clone(), Arc::clone(&room));
        let shard = thread::spawn(move || {
            shard_room.store(true, Ordering::SeqCst);
            shard.control.shard_replied();
        });
        vcpu.control.ask(Request::Pause);
        vcpu.until(|control| control.is_parked());
        at_rest.store(true, Ordering::SeqCst);
        shard.join().unwrap();
        at_rest.store(false, Ordering::SeqCst);
        vcpu.control.ask(Request::Run);
        printed.wait();
        vcpu.control.ask(Request::Stop);
        thread.join().unwrap();
    });
}

#[test]
fn a_stop_ends_the_wait_for_a_shard_that_never_replies() {
    model(|| {
        let (vcpu, room) = (Model::new(), Arc::new(AtomicBool::new(false)));
        vcpu.control.ask(Request::Run);
        let thread = printer(&vcpu, &room, || unreachable!("there was never room"));
        vcpu.control.ask(Request::Stop);
        thread.join().unwrap();
        assert_eq!(vcpu.control.status(), Status::Finished);
    });
}

/// A VM whose CPU time may be used up, with one vCPU.
#[derive(Clone)]
struct Limited {
    vcpu: Model,
    used_up: Arc<AtomicBool>,
}

impl Limited {
    fn new() -> Self {
        Self { vcpu: Model::new(), used_up: Arc::new(AtomicBool::new(false)) }
    }

    /// Another vCPU finds that nothing is left, or the limit is changed.
    fn set_used_up(&self, used_up: bool) {
        self.used_up.store(used_up, Ordering::SeqCst);
        self.vcpu.control.nudge();
    }

    /// What `CpuLimiter::obtain` does.
    fn obtain(&self) -> Flow {
        let never = std::time::Instant::now() + std::time::Duration::from_secs(3600);
        let until = || self.used_up.load(Ordering::SeqCst).then_some(never);
        while until().is_some() {
            if self.vcpu.control.throttle(until) == Flow::Stop {
                return Flow::Stop;
            }
        }
        Flow::Run
    }

    /// What `Vcpu::run` does with a limit.
    fn serve(&self, guest: impl Fn()) {
        let Model { control, signal, .. } = &self.vcpu;
        control.arrive(signal.clone());
        let mut next = control.park();
        if next == Flow::Run {
            next = self.obtain();
        }
        while next != Flow::Stop {
            let flow = control.poll();
            if flow == Flow::Stop {
                break;
            }
            // With `immediate_exit`, KVM_RUN returns at once.
            if flow == Flow::Run && !self.used_up.load(Ordering::SeqCst) {
                guest();
                signal.pending.wait();
            }
            control.kick_arrived(|| signal.pending.clear());
            next = if flow == Flow::Pause { control.park() } else { self.obtain() };
        }
        self.vcpu.leave(0);
    }

    fn spawn(&self, guest: impl Fn() + 'static) -> thread::JoinHandle<()> {
        let limited = self.clone();
        thread::spawn(move || limited.serve(guest))
    }
}

#[test]
fn a_vcpu_without_cpu_time_comes_out_and_goes_on_when_there_is_some() {
    large_model(|| {
        let vm = Limited::new();
        vm.vcpu.control.ask(Request::Run);
        let thread = vm.spawn(|| ());
        vm.set_used_up(true);
        vm.vcpu.until(|control| control.status() == Status::Throttled);
        vm.set_used_up(false);
        vm.vcpu.until(|control| control.status() == Status::Running);
        vm.vcpu.control.ask(Request::Stop);
        thread.join().unwrap();
        assert_eq!(vm.vcpu.control.status(), Status::Finished);
    });
}

#[test]
fn a_vcpu_without_cpu_time_can_be_paused_and_stopped() {
    large_model(|| {
        let vm = Limited::new();
        let at_rest = Arc::new(AtomicBool::new(false));
        vm.vcpu.control.ask(Request::Run);
        let resting = Arc::clone(&at_rest);
        let thread =
            vm.spawn(move || assert!(!resting.load(Ordering::SeqCst), "the guest ran while it was paused"));
        let other = vm.clone();
        let other = thread::spawn(move || other.set_used_up(true));
        vm.vcpu.control.ask(Request::Pause);
        vm.vcpu.until(|control| control.is_parked());
        at_rest.store(true, Ordering::SeqCst);
        other.join().unwrap();
        vm.vcpu.control.ask(Request::Stop);
        thread.join().unwrap();
        assert_eq!(vm.vcpu.control.status(), Status::Finished);
    });
}
