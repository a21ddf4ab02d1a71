use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use super::{Control, Flow, KickTarget, Request, Status};

/// A deadline that only a hanging test meets.
const DEADLINE: Duration = Duration::from_secs(60);
/// A time that no test waits for.
const NEVER: Duration = Duration::from_secs(3600);

/// Counts its kicks.
#[derive(Clone, Default)]
struct Kicks(Arc<AtomicUsize>);

impl Kicks {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl KickTarget for Kicks {
    fn kick(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Vcpu {
    control: Arc<Control<Kicks, &'static str>>,
    kicks: Kicks,
    changes: Receiver<()>,
}

impl Vcpu {
    /// A vCPU whose thread has arrived.
    fn new() -> Self {
        let (told, changes) = channel();
        let control = Arc::new(Control::new(Box::new(move || {
            let _ = told.send(());
        })));
        let kicks = Kicks::default();
        control.arrive(kicks.clone());
        Self { control, kicks, changes }
    }

    /// A vCPU that runs.
    fn running() -> Self {
        let vcpu = Self::new();
        vcpu.control.ask(Request::Run);
        assert_eq!(vcpu.control.park(), Flow::Run);
        vcpu.changes.try_iter().for_each(drop);
        vcpu
    }

    /// Does something on the vCPU's own thread.
    fn on_thread<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Control<Kicks, &'static str>) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let control = Arc::clone(&self.control);
        spawn(move || act(&control))
    }

    /// Waits for changes until the status is this.
    fn until(&self, status: Status) {
        while self.control.status() != status {
            self.changes.recv_timeout(DEADLINE).expect("the status does not change");
        }
    }
}

#[test]
fn a_new_vcpu_is_paused_and_at_rest() {
    let vcpu = Vcpu::new();
    assert_eq!((vcpu.control.status(), vcpu.control.poll()), (Status::Paused, Flow::Pause));
    assert!(vcpu.control.is_parked());
    assert_eq!(vcpu.control.take_end(), None);
}

#[test]
fn the_last_request_counts_and_stop_is_the_last() {
    let vcpu = Vcpu::new();
    for (request, flow) in [
        (Request::Run, Flow::Run),
        (Request::Pause, Flow::Pause),
        (Request::Run, Flow::Run),
        (Request::Stop, Flow::Stop),
        (Request::Run, Flow::Stop),
        (Request::Pause, Flow::Stop),
    ] {
        vcpu.control.ask(request);
        assert_eq!(vcpu.control.poll(), flow, "after {request:?}");
    }
}

#[test]
fn a_vcpu_that_was_asked_to_run_is_not_at_rest_though_it_has_not_woken_yet() {
    let vcpu = Vcpu::new();
    vcpu.control.ask(Request::Run);
    assert_eq!(vcpu.control.status(), Status::Paused);
    assert!(!vcpu.control.is_parked());
    vcpu.control.ask(Request::Pause);
    assert!(vcpu.control.is_parked());
}

#[test]
fn only_a_running_vcpu_is_kicked() {
    let vcpu = Vcpu::new();
    vcpu.control.ask(Request::Run);
    assert_eq!(vcpu.kicks.count(), 0, "it is parked");
    assert_eq!(vcpu.control.park(), Flow::Run);
    vcpu.control.ask(Request::Pause);
    assert_eq!(vcpu.kicks.count(), 1);
    vcpu.control.finish("end");
    vcpu.control.kick_arrived(|| ());
    vcpu.control.ask(Request::Stop);
    assert_eq!(vcpu.kicks.count(), 1, "it has finished");
}

#[test]
fn a_vcpu_is_kicked_once_until_the_kick_has_arrived() {
    let vcpu = Vcpu::running();
    for request in [Request::Pause, Request::Run, Request::Pause] {
        vcpu.control.ask(request);
    }
    assert_eq!(vcpu.kicks.count(), 1);
    let mut eaten = false;
    vcpu.control.kick_arrived(|| eaten = true);
    assert!(eaten);
    vcpu.control.ask(Request::Run);
    assert_eq!(vcpu.kicks.count(), 2);
}

#[test]
fn a_vcpu_before_its_arrival_is_asked_without_a_kick() {
    let control: Control<Kicks, ()> = Control::new(Box::new(|| ()));
    control.ask(Request::Run);
    assert_eq!(control.park(), Flow::Run);
    control.ask(Request::Stop);
    assert_eq!(control.poll(), Flow::Stop);
}

#[test]
fn a_parked_vcpu_wakes_to_run_and_to_stop() {
    for (request, flow) in [(Request::Run, Flow::Run), (Request::Stop, Flow::Stop)] {
        let vcpu = Vcpu::running();
        vcpu.control.ask(Request::Pause);
        let parked = vcpu.on_thread(Control::park);
        vcpu.until(Status::Paused);
        assert!(vcpu.control.is_parked());
        vcpu.control.ask(request);
        assert_eq!(parked.join().unwrap(), flow);
    }
}

#[test]
fn a_vcpu_waits_for_its_shard_and_is_told_when_to_look() {
    let vcpu = Vcpu::running();
    let room = Arc::new(AtomicUsize::new(0));
    let looked = Arc::clone(&room);
    let waiting =
        vcpu.on_thread(move |control| control.wait_for_shard(|| looked.load(Ordering::SeqCst) == 2));
    vcpu.until(Status::WaitingForShard);
    assert!(!vcpu.control.is_parked(), "nobody has paused it");
    room.store(1, Ordering::SeqCst);
    vcpu.control.shard_replied();
    room.store(2, Ordering::SeqCst);
    vcpu.control.shard_replied();
    assert_eq!(waiting.join().unwrap(), Flow::Run);
    assert_eq!(vcpu.control.status(), Status::Running);
    assert_eq!(vcpu.kicks.count(), 0);
}

#[test]
fn a_vcpu_whose_shard_is_ready_does_not_wait() {
    assert_eq!(Vcpu::running().control.wait_for_shard(|| true), Flow::Run);
}

#[test]
fn a_vcpu_that_waits_for_its_shard_can_be_paused_and_goes_on_after_the_resume() {
    let vcpu = Vcpu::running();
    let room = Arc::new(AtomicUsize::new(0));
    let looked = Arc::clone(&room);
    let waiting =
        vcpu.on_thread(move |control| control.wait_for_shard(|| looked.load(Ordering::SeqCst) == 1));
    vcpu.until(Status::WaitingForShard);
    vcpu.control.ask(Request::Pause);
    assert!(vcpu.control.is_parked());
    room.store(1, Ordering::SeqCst);
    vcpu.control.shard_replied();
    assert!(vcpu.control.is_parked(), "the reply is consumed on resume");
    assert_eq!(vcpu.control.status(), Status::WaitingForShard);
    vcpu.control.ask(Request::Run);
    assert_eq!(waiting.join().unwrap(), Flow::Run);
}

#[test]
fn a_vcpu_that_waits_for_its_shard_can_be_stopped() {
    let vcpu = Vcpu::running();
    let waiting = vcpu.on_thread(|control| control.wait_for_shard(|| false));
    vcpu.until(Status::WaitingForShard);
    vcpu.control.ask(Request::Stop);
    assert_eq!(waiting.join().unwrap(), Flow::Stop);
}

#[test]
fn a_vcpu_waits_until_a_point_in_time_and_not_shorter() {
    let vcpu = Vcpu::running();
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(vcpu.control.wait_until(deadline), Flow::Run);
    assert!(Instant::now() >= deadline);
    assert_eq!(vcpu.control.wait_until(deadline), Flow::Run, "it has passed");
    assert_eq!(vcpu.control.status(), Status::Running);
}

#[test]
fn a_vcpu_that_waits_for_a_point_in_time_can_be_stopped() {
    let vcpu = Vcpu::running();
    let waiting = vcpu.on_thread(|control| control.wait_until(Instant::now() + NEVER));
    vcpu.until(Status::WaitingForShard);
    vcpu.control.shard_replied();
    vcpu.control.ask(Request::Stop);
    assert_eq!(waiting.join().unwrap(), Flow::Stop);
}

#[test]
fn a_vcpu_that_waits_for_a_point_in_time_stays_paused_beyond_it() {
    let vcpu = Vcpu::running();
    vcpu.control.ask(Request::Pause);
    let waiting = vcpu.on_thread(|control| control.wait_until(Instant::now()));
    vcpu.until(Status::WaitingForShard);
    assert!(vcpu.control.is_parked());
    vcpu.control.ask(Request::Run);
    assert_eq!(waiting.join().unwrap(), Flow::Run);
}

#[test]
fn a_finished_vcpu_leaves_its_end_to_the_first_who_takes_it() {
    let vcpu = Vcpu::running();
    vcpu.control.finish("reset");
    vcpu.until(Status::Finished);
    assert!(vcpu.control.is_parked());
    assert_eq!(vcpu.control.take_end(), Some("reset"));
    assert_eq!(vcpu.control.take_end(), None);
}

#[test]
fn a_thousand_kicks_reach_a_vcpu_that_runs() {
    let vcpu = Vcpu::new();
    let kicks = vcpu.kicks.clone();
    let thread = vcpu.on_thread(move |control| {
        let mut seen = 0;
        let mut flow = control.park();
        while flow != Flow::Stop {
            // The guest spins until it is kicked.
            while kicks.count() == seen && control.poll() == Flow::Run {
                std::thread::yield_now();
            }
            seen = kicks.count();
            control.kick_arrived(|| ());
            flow = match control.poll() {
                Flow::Pause => control.park(),
                flow => flow,
            };
        }
    });
    for _ in 0..1_000 {
        vcpu.control.ask(Request::Run);
        vcpu.until(Status::Running);
        vcpu.control.ask(Request::Pause);
        vcpu.until(Status::Paused);
        assert!(vcpu.control.is_parked());
    }
    vcpu.control.ask(Request::Stop);
    thread.join().unwrap();
}

#[test]
fn a_throttled_vcpu_waits_until_there_is_time_again() {
    let vcpu = Vcpu::running();
    let until = Arc::new(std::sync::Mutex::new(Some(Instant::now() + NEVER)));
    let looked = Arc::clone(&until);
    let waiting = vcpu.on_thread(move |control| control.throttle(|| *looked.lock().unwrap()));
    vcpu.until(Status::Throttled);
    assert!(!vcpu.control.is_parked(), "it is asked to run");
    vcpu.control.ask(Request::Pause);
    assert!(vcpu.control.is_parked());
    *until.lock().unwrap() = None;
    vcpu.control.nudge();
    assert_eq!(vcpu.control.status(), Status::Throttled, "it is still paused");
    vcpu.control.ask(Request::Run);
    assert_eq!(waiting.join().unwrap(), Flow::Run);
    assert_eq!(vcpu.kicks.count(), 0, "it was not in the guest");
}

#[test]
fn a_throttled_vcpu_can_be_stopped() {
    let vcpu = Vcpu::running();
    let waiting = vcpu.on_thread(|control| control.throttle(|| Some(Instant::now() + NEVER)));
    vcpu.until(Status::Throttled);
    vcpu.control.ask(Request::Stop);
    assert_eq!(waiting.join().unwrap(), Flow::Stop);
}

#[test]
fn a_nudge_kicks_a_running_vcpu_and_asks_nothing_of_it() {
    let vcpu = Vcpu::running();
    vcpu.control.nudge();
    vcpu.control.nudge();
    assert_eq!((vcpu.kicks.count(), vcpu.control.poll()), (1, Flow::Run));
}

/// Its thread has lost its CPU while it tells of a change, as one of low weight may for long.
#[test]
fn sec_02_whoever_is_told_of_a_change_never_waits_for_the_vcpus_thread() {
    let (told, changes) = channel();
    let (go_on, held) = channel::<()>();
    let held = std::sync::Mutex::new(held);
    let control: Arc<Control<Kicks, ()>> = Arc::new(Control::new(Box::new(move || {
        let _ = told.send(());
        let _ = held.lock().unwrap().recv_timeout(DEADLINE);
    })));
    control.arrive(Kicks::default());
    let vcpu = spawn({
        let control = Arc::clone(&control);
        move || control.park()
    });
    changes.recv_timeout(DEADLINE).unwrap();
    let (done, looked) = channel();
    let shard = spawn({
        let control = Arc::clone(&control);
        move || {
            assert_eq!((control.status(), control.is_parked()), (Status::Paused, true));
            control.nudge();
            control.shard_replied();
            control.ask(Request::Stop);
            assert_eq!(control.take_end(), None);
            done.send(()).unwrap();
        }
    });
    let waited = looked.recv_timeout(Duration::from_secs(10)).is_err();
    drop(go_on);
    shard.join().unwrap();
    assert_eq!(vcpu.join().unwrap(), Flow::Stop);
    assert!(!waited, "the shard waited for the vCPU's thread");
}
