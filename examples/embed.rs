//! Boots a VM from a program and looks at what it printed.
//!
//! Run it with `cargo run --example embed`.

use ringlet::{Console, ConsoleBuffer, Escaped, Outcome, Resources, Runtime, RuntimeOptions, VmConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let output = ConsoleBuffer::new(4096);
    let resources = Resources { console: Console::Buffer(output.clone()), ..Resources::default() };
    let config = VmConfig::new("hello").memory_mib(64).args(["from", "an example"]);
    let vm = runtime.launch(&config, resources)?;
    let executor = tokio::runtime::Builder::new_current_thread().build()?;
    let outcome = executor.block_on(vm.wait());
    // What a guest printed may hold anything; escaped, it cannot play with the terminal.
    for line in String::from_utf8_lossy(&output.contents()).lines() {
        println!("{}", Escaped(line));
    }
    println!("{}: {outcome}", vm.id());
    assert_eq!(*outcome, Outcome::Exited { code: 0 });
    Ok(())
}
