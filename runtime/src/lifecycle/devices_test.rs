//! What a VM's life asks of its devices, and when; with devices that do what the test says.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use ringlet_devices::virtio::HostEvent;
use ringlet_metrics::VmState;
use tokio::sync::Semaphore;

use super::tests::{Host, block_on, end, eventually, idle, on_both_engines, puppet};
use crate::assembly::VmParts;
use crate::config::VmConfig;
use crate::console::Console;
use crate::devices::{Fault, Pending, Worker};
use crate::outcome::Outcome;
use crate::vcpu::VcpuControl;
use crate::vcpu::control::Status;
use crate::vm::Vm;

/// A device of the test's own: notes what it is asked, and how the vCPU was then.
#[derive(Clone)]
struct Puppet(Arc<Strings>);

struct Strings {
    asked: Mutex<Vec<(&'static str, bool)>>,
    vcpu: Arc<VcpuControl>,
    /// One permit for each suspension or stop that may complete.
    done: Semaphore,
    /// What suspending and stopping end with.
    result: Mutex<Result<(), Fault>>,
    fault: Mutex<Option<Fault>>,
}

impl Puppet {
    /// Gives a VM this device.
    fn of(parts: &mut VmParts) -> Self {
        let puppet = Self(Arc::new(Strings {
            asked: Mutex::default(),
            vcpu: Arc::clone(&parts.task.life.controls[0]),
            done: Semaphore::new(0),
            result: Mutex::new(Ok(())),
            fault: Mutex::default(),
        }));
        let worker = puppet.clone();
        parts.devices.push(Box::new(move |_, _| Box::new(worker)));
        puppet
    }

    fn note(&self, what: &'static str) {
        self.0.asked.lock().unwrap().push((what, self.0.vcpu.is_parked()));
    }

    fn asked(&self) -> Vec<(&'static str, bool)> {
        self.0.asked.lock().unwrap().clone()
    }

    fn until_asked(&self, what: &'static str) {
        eventually(what, || self.asked().last().is_some_and(|(last, _)| *last == what));
    }

    fn allow(&self) {
        self.0.done.add_permits(1);
    }

    fn fail(&self) {
        *self.0.result.lock().unwrap() = Err(fault());
    }

    fn when_allowed(&self) -> Pending {
        let strings = Arc::clone(&self.0);
        Box::pin(async move {
            strings.done.acquire().await.unwrap().forget();
            strings.result.lock().unwrap().clone()
        })
    }
}

impl Worker for Puppet {
    fn id(&self) -> &str {
        "disk0"
    }

    fn notice(&self, _event: HostEvent) {
        self.note("notice");
    }

    fn suspend(&self) -> Pending {
        self.note("suspend");
        self.when_allowed()
    }

    fn resume(&self) {
        self.note("resume");
    }

    fn stop(&self) -> Pending {
        self.note("stop");
        self.when_allowed()
    }

    fn poll_fault(&self, _cx: &mut Context<'_>) -> Poll<Fault> {
        self.0.fault.lock().unwrap().clone().map_or(Poll::Pending, Poll::Ready)
    }
}

fn fault() -> Fault {
    Fault { error: "disk0: it is on fire".into() }
}

/// A running VM with such a device.
fn vm_with_puppet(host: &Host) -> (Vm, Puppet) {
    let (vm, mut parts) = host.spinner();
    let puppet = Puppet::of(&mut parts);
    assert!(host.shard.send(parts).is_ok());
    (vm, puppet)
}

/// Polls `future` a little while: it is not ready.
async fn pending<F: Future>(future: Pin<&mut F>) {
    assert!(tokio::time::timeout(Duration::from_millis(20), future).await.is_err());
}

#[test]
fn a_pause_is_true_when_vcpus_and_then_devices_are_at_rest() {
    on_both_engines(|host| {
        let (vm, puppet) = vm_with_puppet(&host);
        block_on(async {
            for _ in 0..3 {
                {
                    let mut pause = std::pin::pin!(vm.pause());
                    pending(pause.as_mut()).await;
                    assert_eq!(vm.state(), VmState::Running);
                    // Whoever pauses meanwhile waits for the same; nobody resumes what is not paused.
                    let mut again = std::pin::pin!(vm.pause());
                    pending(again.as_mut()).await;
                    assert!(vm.resume().await.unwrap_err().to_string().contains("is being paused"));
                    puppet.allow();
                    pause.await.unwrap();
                    again.await.unwrap();
                }
                assert_eq!(vm.state(), VmState::Paused);
                vm.resume().await.unwrap();
            }
        });
        // At rest before the devices are suspended, and still when they are resumed.
        let round = [("suspend", true), ("resume", true)];
        assert_eq!(puppet.asked(), [round, round, round].concat());
        puppet.allow();
        assert_eq!(*block_on(vm.stop()), Outcome::Stopped);
        assert_eq!(puppet.asked().last(), Some(&("stop", true)));
    });
}

#[test]
fn the_outcome_comes_after_the_devices_have_stopped() {
    on_both_engines(|host| {
        let (vm, puppet) = vm_with_puppet(&host);
        block_on(async {
            let mut stop = std::pin::pin!(vm.stop());
            pending(stop.as_mut()).await;
            puppet.until_asked("stop");
            assert_eq!(vm.state(), VmState::Stopping);
            assert_eq!(puppet.0.vcpu.status(), Status::Finished);
            assert_eq!(puppet.asked(), [("stop", true)]);
            puppet.allow();
            assert_eq!(*stop.await, Outcome::Stopped);
        });
    });
}

#[test]
fn a_stop_while_devices_come_to_rest_waits_for_both() {
    on_both_engines(|host| {
        let (vm, puppet) = vm_with_puppet(&host);
        block_on(async {
            let mut pause = std::pin::pin!(vm.pause());
            pending(pause.as_mut()).await;
            puppet.until_asked("suspend");
            vm.request_stop();
            assert!(pause.await.unwrap_err().to_string().contains("has ended"));
            let mut ended = std::pin::pin!(vm.wait());
            pending(ended.as_mut()).await;
            puppet.until_asked("stop");
            assert_eq!(puppet.asked(), [("suspend", true), ("stop", true)]);
            puppet.allow();
            assert_eq!(*ended.await, Outcome::Stopped);
        });
    });
}

#[test]
fn devices_that_cannot_stop_make_the_outcome_a_failure_that_says_what_it_would_have_been() {
    on_both_engines(|host| {
        let (vm, mut parts) = host.assemble(&VmConfig::new("exit").memory_mib(16), Console::Discard);
        let puppet = Puppet::of(&mut parts);
        assert!(host.shard.send(parts).is_ok());
        puppet.until_asked("stop");
        puppet.fail();
        puppet.allow();
        let error = "disk0: it is on fire. Before that: the guest exited with code 0".to_owned();
        assert_eq!(*block_on(vm.wait()), Outcome::Failed { error });
    });
}

#[test]
fn devices_that_cannot_come_to_rest_end_the_vm() {
    on_both_engines(|host| {
        let (vm, puppet) = vm_with_puppet(&host);
        puppet.fail();
        puppet.allow();
        puppet.allow();
        assert!(block_on(vm.pause()).unwrap_err().to_string().contains("has ended"));
        assert_eq!(*block_on(vm.wait()), Outcome::Failed { error: fault().error });
        assert_eq!(puppet.asked(), [("suspend", true), ("stop", true)]);
    });
}

#[test]
fn a_device_that_cannot_go_on_ends_the_vm_unless_the_guest_has() {
    on_both_engines(|host| {
        for ended in [false, true] {
            let (vm, mut parts) = host.spinner();
            let device = Puppet::of(&mut parts);
            *device.0.fault.lock().unwrap() = Some(fault());
            device.allow();
            if ended {
                let first = puppet();
                first.finish(end(Outcome::Exited { code: 9 }));
                parts.task.life.controls.push(first);
            }
            assert!(host.shard.send(parts).is_ok());
            let outcome = block_on(vm.wait());
            let expected = match ended {
                true => Outcome::Exited { code: 9 },
                false => Outcome::Failed { error: fault().error },
            };
            assert_eq!(*outcome, expected);
        }
    });
}

#[test]
fn a_device_that_cannot_start_ends_the_vm_and_the_other_devices() {
    on_both_engines(|host| {
        let (vm, mut parts) = host.create(&idle(), Console::Discard);
        let puppets = [Puppet::of(&mut parts), Puppet::of(&mut parts)];
        *puppets[1].0.fault.lock().unwrap() = Some(fault());
        puppets.iter().for_each(Puppet::allow);
        assert!(host.shard.send(parts).is_ok());
        assert_eq!(*block_on(vm.wait()), Outcome::Failed { error: fault().error });
        assert!(puppets.iter().all(|puppet| puppet.asked() == [("stop", true)]));
    });
}

#[test]
fn a_disk_is_looked_at_again_and_another_is_not_known() {
    on_both_engines(|host| {
        let (vm, puppet) = vm_with_puppet(&host);
        puppet.allow();
        block_on(vm.rescan_drive("disk0")).unwrap();
        assert_eq!(puppet.asked().len(), 1);
        let error = block_on(vm.rescan_drive("disk1")).unwrap_err();
        assert_eq!(error.to_string(), "device: there is no \"disk1\"");
        block_on(vm.stop());
    });
}
