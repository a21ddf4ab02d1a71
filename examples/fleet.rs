//! Runs twenty VMs in this process, pauses and resumes them, and shows the metrics that came of it.
//!
//! Run it with `cargo run --example fleet`.

use ringlet::{Outcome, Resources, Runtime, RuntimeOptions, VmConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let config = VmConfig::new("idle").memory_mib(16);
    let vms =
        (0..20).map(|_| runtime.launch(&config, Resources::default())).collect::<Result<Vec<_>, _>>()?;
    for vm in &vms {
        vm.pause().await?;
        vm.resume().await?;
    }
    for vm in &vms {
        assert_eq!(*vm.stop().await, Outcome::Stopped);
    }
    let metrics = runtime.registry().encode();
    for line in metrics.lines().filter(|line| line.starts_with("ringlet_vms_")) {
        println!("{line}");
    }
    Ok(())
}
