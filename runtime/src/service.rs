//! What a shard does for this crate: it lives the lives of its VMs.

use ringlet_io::{Owner, Service, ShardContext, Task};
use tokio::sync::mpsc::WeakUnboundedSender;

use crate::assembly::VmParts;
use crate::devices::Devices;
use crate::lifecycle::VmCommand;
use crate::pumps::Pumps;

/// The VMs of one shard.
pub(crate) struct VmService {
    vms: Vec<Resident>,
}

struct Resident {
    life: Task<()>,
    /// Weak, so that a VM whose handle is dropped still ends.
    commands: WeakUnboundedSender<VmCommand>,
}

impl VmService {
    /// Made on the shard's thread, which is to leave the host's signals to the host's threads.
    pub(crate) fn on_this_thread() -> Self {
        if let Err(error) = crate::kvm::sys::block_asynchronous_signals() {
            tracing::warn!(%error, "an event loop takes part in the host's signals");
        }
        Self { vms: Vec::new() }
    }
}

impl Service for VmService {
    type Command = Box<VmParts>;

    fn command(&mut self, cx: &ShardContext, parts: Box<VmParts>) {
        self.vms.retain(|vm| !vm.life.is_finished());
        let VmParts { task, serial, devices, console, commands } = *parts;
        let (buffers, hold) = (task.buffers.account().clone(), task.machine.cpu.hold().clone());
        let owner = Owner::limited(serial.metrics.clone(), buffers, hold);
        let pumps = Pumps::start(serial, console, cx, &owner);
        let devices = Devices::start(devices, cx, &owner);
        let life = cx.spawn(&owner, task.run(cx.clone(), pumps, devices));
        self.vms.push(Resident { life, commands });
    }

    async fn drain(&mut self, _cx: &ShardContext) {
        for vm in &self.vms {
            if let Some(commands) = vm.commands.upgrade() {
                let _ = commands.send(VmCommand::Stop);
            }
        }
        for vm in self.vms.drain(..) {
            if let Err(error) = vm.life.await {
                tracing::error!(%error, "a VM's task ended badly");
            }
        }
    }
}
