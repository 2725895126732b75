//! Boots Linux to a shell on two vCPUs; `first_hour` boots it on one.

use std::time::{Duration, Instant};

use vmstate_lab::error::Result;
use vmstate_lab::guest;

use crate::place::case;
use crate::world::{World, ensure, idle, within};

fn shell(world: &mut World) -> Result<()> {
    let options = guest::Options { shell: true, ..guest::Options::default() };
    let mut bench = world.bench(&vmstate_lab::bench::Guest { cpus: 2, options, ..idle() })?;
    let mut vmm = bench.start(None)?;
    let wait = |vmm: &vmstate_lab::vmm::Vmm, text: &str, deadline: Instant| {
        while !vmm.console().contains(text) {
            ensure(Instant::now() < deadline, || format!("no {text:?} on the console: {}", vmm.console()))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    wait(&vmm, "# ", within(Duration::from_secs(120)))?;
    // The terminal echoes the command, so the expected answer must not be part of it.
    vmm.type_in("echo $((6*7)) is $(busybox nproc)\n")?;
    wait(&vmm, "42 is 2", within(Duration::from_secs(60)))?;
    vmm.type_in("exit\n")?;
    let status = vmm.process().wait(within(Duration::from_secs(60)))?;
    ensure(status.success(), || format!("the monitor ended with {status} after the power-off"))
}

#[test]
fn to_a_shell_with_two_cpus() {
    case("boot::to_a_shell_with_two_cpus", shell);
}
