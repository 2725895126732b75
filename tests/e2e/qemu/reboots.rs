//! A guest that reboots at the destination: the monitor there starts it from the kernel on the monitor's own command
//! line.

use std::path::Path;
use std::time::{Duration, Instant};

use vmstate_lab::error::Result;
use vmstate_lab::tiny;
use vmstate_lab::vmm::{Program, Vmm};

use super::peer::{PASSES, Peer, await_pass, last_pass, migrate};
use crate::place::{case_with_qemu, minivmm, scratch};
use crate::world::{ANSWER, ensure, within};

/// Options of a QEMU that restarts its guest on a reboot, although the lab passes `-no-reboot`.
const STARTS_AGAIN: [&str; 2] = ["-action", "reboot=reset"];

fn hop(mut source: Vmm, (destination, uri): (Vmm, String)) -> Result<Vmm> {
    let done = last_pass(&source)?;
    let status = migrate(&mut source, &uri)?;
    ensure(status == "completed", || format!("the migration is {status}: {:?}", destination.errors()))?;
    await_pass(&destination, done + PASSES)?;
    Ok(destination)
}

/// Reboots the guest, which must then count from the beginning.
fn reboots(vmm: &mut Vmm) -> Result<()> {
    vmm.type_in("r")?;
    let counts_again = |console: &str| {
        let start = console.rfind(tiny::BANNER);
        start.is_some_and(|start| !tiny::passes(&console[start..]).is_empty())
    };
    let deadline = within(ANSWER);
    while !counts_again(&vmm.console()) {
        ensure(Instant::now() < deadline, || {
            format!("the guest does not start and count again: {:?}; {}", vmm.console(), vmm.errors())
        })?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn walk(directory: &Path) -> Result<()> {
    let ours = Program::Minivmm(minivmm().to_owned());
    let mut peer = Peer::new(directory, "kvm")?;
    let mut vmm = peer.boot(&[])?;
    vmm.listen(true)?;
    await_pass(&vmm, PASSES)?;
    let waiting = peer.wait_as(&ours, |_| ())?;
    vmm = hop(vmm, waiting)?;
    let waiting = peer.wait(&STARTS_AGAIN)?;
    vmm = hop(vmm, waiting)?;
    reboots(&mut vmm)?;
    vmm.listen(true)?;
    let waiting = peer.wait_as(&ours, |_| ())?;
    vmm = hop(vmm, waiting)?;
    reboots(&mut vmm)?;
    // minivmm starts a guest without firmware, and QEMU restarts a guest through firmware: here, with `-no-reboot`, the
    // reboot ends QEMU.
    let waiting = peer.wait(&[])?;
    vmm = hop(vmm, waiting)?;
    vmm.type_in("r")?;
    let status = vmm.wait_end(within(ANSWER))?;
    ensure(status.success(), || format!("QEMU ended with {status}: {}", vmm.errors()))
}

#[test]
fn a_guest_starts_again_where_it_has_arrived() {
    case_with_qemu("qemu::reboots::a_guest_starts_again_where_it_has_arrived", |_| walk(scratch()?.path()));
}
