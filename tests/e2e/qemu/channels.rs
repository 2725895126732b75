//! Page channels (QEMU's multifd) between QEMU and minivmm, both ways, raw and compressed. The guest keeps rewriting
//! its memory and checks that each page has its last content.

use std::path::Path;

use vmstate_lab::error::Result;
use vmstate_lab::vmm::{Program, Vmm};

use super::peer::{PASSES, Peer, await_pass, last_pass};
use crate::place::{case_with_qemu, minivmm, scratch};
use crate::world::{MIGRATION, ensure, within};

/// Number and compression of the page channels over which each QEMU receives the guest and sends it on.
const CHANNELS: [(u8, &str); 6] = [(1, "none"), (4, "zstd"), (2, "none"), (1, "zstd"), (4, "none"), (2, "zstd")];

/// QEMU's options for page channels, which a destination needs before the source connects; they also apply when QEMU is
/// the source.
fn words((number, compression): (u8, &str)) -> Vec<String> {
    let settings =
        ["x-multifd=on".into(), format!("multifd-channels={number}"), format!("multifd-compression={compression}")];
    let settings = settings.into_iter().chain(["x-return-path=on".into()]);
    settings.flat_map(|setting| ["-global".into(), format!("migration.{setting}")]).collect()
}

/// Migrates the guest over `number` page channels, which carry all of its pages; the guest counts on.
fn hop(mut source: Vmm, (mut destination, uri): (Vmm, String), number: u8) -> Result<Vmm> {
    let done = last_pass(&source)?;
    source.start_migration(&uri)?;
    let info = source.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || {
        let ended = destination.status();
        format!("over {number} channels: {info}; there: {ended:?}, {:?}", destination.errors())
    })?;
    await_pass(&destination, done + PASSES)?;
    Ok(destination)
}

fn walk(directory: &Path) -> Result<()> {
    let ours = Program::Minivmm(minivmm().to_owned());
    let mut peer = Peer::new(directory, "kvm")?;
    let first = words(CHANNELS[0]);
    let mut vmm = peer.boot(&first.iter().map(String::as_str).collect::<Vec<_>>())?;
    await_pass(&vmm, PASSES)?;
    for (here, there) in CHANNELS.into_iter().zip(CHANNELS.into_iter().cycle().skip(1)) {
        let waiting = peer.wait_as(&ours, |_| ())?;
        vmm = hop(vmm, waiting, here.0)?;
        vmm.set_channels(there.0, there.1)?;
        let words = words(there);
        let waiting = peer.wait(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        vmm = hop(vmm, waiting, there.0)?;
    }
    Ok(())
}

#[test]
fn a_guest_goes_both_ways_over_page_channels() {
    case_with_qemu("qemu::channels::a_guest_goes_both_ways_over_page_channels", |_| walk(scratch()?.path()));
}
