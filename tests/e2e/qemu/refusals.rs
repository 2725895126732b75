//! Migrations from a QEMU that a minivmm refuses: each time minivmm prints the reason, the guest runs on in its QEMU,
//! and then migrates to a machine that fits.

use std::path::Path;
use std::time::{Duration, Instant};

use vmstate_lab::error::Result;
use vmstate_lab::vmm::{Config, Program, Vmm};

use super::peer::{PASSES, Peer, await_pass, failed, last_pass, migrate, power_off};
use crate::place::{case_with_qemu, minivmm, scratch};
use crate::world::{ANSWER, ensure, within};

/// Devices of a QEMU that minivmm lacks, as QEMU's options, and the option in minivmm's refusal that leaves the device
/// out.
const DEVICES: [(&[&str], &str); 5] = [
    (&["-M", "rtc=on"], "start QEMU with -M microvm,rtc=off"),
    (&["-M", "ioapic2=on"], "start QEMU with -M microvm,ioapic2=off"),
    (&["-M", "pit=off"], "start QEMU with -M microvm,pit=on"),
    (&["-netdev", "user,id=u", "-device", "virtio-net-device,netdev=u"], "give both sides a tap"),
    (&["-device", "virtio-rng-device"], "virtio-rng/0"),
];

/// A machine that differs from the guest's: name, difference, and a part of minivmm's refusal.
type Other = (&'static str, fn(&mut Config), &'static str);
const MACHINES: [Other; 4] = [
    ("less memory", |config| config.memory_mib /= 2, "RAM block microvm.ram"),
    ("more memory", |config| config.memory_mib *= 2, "RAM block microvm.ram"),
    ("no disk", |config| config.disk = None, "virtio-blk/0"),
    ("two vCPUs", |config| config.cpus = 2, "cpu_common/1"),
];

/// Migrates to a destination that must refuse; the guest runs on at the source.
fn refused(source: &mut Vmm, (mut destination, uri): (Vmm, String), said: &str) -> Result<()> {
    let status = migrate(source, &uri)?;
    ensure(status == "failed", || format!("the migration is {status}, expected is a refusal"))?;
    source.await_status("running", within(ANSWER))?;
    await_pass(source, last_pass(source)? + PASSES)?;
    // After a refusal before the first page the destination waits for the next source; after a later one it ends.
    let deadline = within(ANSWER);
    while !destination.errors().contains(said) && destination.process().ended().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    if destination.process().ended().is_none() {
        destination.process().kill();
    }
    destination.wait_end(within(ANSWER))?;
    let (errors, console) = (destination.errors(), destination.console());
    ensure(errors.contains(said), || format!("minivmm's output lacks {said:?}: {errors:?}"))?;
    ensure(console.is_empty(), || format!("the guest ran in the minivmm that refused it: {console:?}"))
}

/// Migrates to a destination that accepts the guest, which goes on there and powers off.
fn taken(mut source: Vmm, (destination, uri): (Vmm, String)) -> Result<()> {
    let done = last_pass(&source)?;
    let status = migrate(&mut source, &uri)?;
    ensure(status == "completed", || {
        format!("the migration is {status}; the destination: {:?}", destination.errors())
    })?;
    await_pass(&destination, done + PASSES)?;
    drop(source);
    power_off(destination)
}

fn boot(peer: &mut Peer, more: &[&str]) -> Result<Vmm> {
    let mut source = peer.boot(more)?;
    source.listen(true)?;
    await_pass(&source, PASSES)?;
    Ok(source)
}

fn walk(directory: &Path) -> Result<()> {
    let ours = Program::Minivmm(minivmm().to_owned());
    let mut peer = Peer::new(directory, "kvm")?;
    let in_case = |what: &str, result: Result<()>| result.map_err(|error| failed(format!("{what}: {error}")));
    for (more, said) in DEVICES {
        let mut source = boot(&mut peer, more)?;
        let waiting = peer.wait_as(&ours, |_| ())?;
        in_case(&more.join(" "), refused(&mut source, waiting, said))?;
        let waiting = peer.wait(more)?;
        in_case(&more.join(" "), taken(source, waiting))?;
    }
    let mut source = boot(&mut peer, &[])?;
    for (what, change, said) in MACHINES {
        let waiting = peer.wait_as(&ours, change)?;
        in_case(what, refused(&mut source, waiting, said))?;
    }
    let waiting = peer.wait_as(&ours, |_| ())?;
    in_case("a machine that fits", taken(source, waiting))
}

#[test]
fn each_leaves_the_guest_running_and_able_to_migrate() {
    case_with_qemu("qemu::refusals::each_leaves_the_guest_running_and_able_to_migrate", |_| walk(scratch()?.path()));
}
