//! Compares two machines: lists everything that would differ for a guest, each with a remedy.

use std::fmt;

use super::facts::{Card, Disk, Facts};
use super::processor;

/// A difference of two machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What the source has and what this machine has.
    pub what: String,
    /// Remedy.
    pub remedy: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.remedy)
    }
}

/// Lists all differences for a guest with the machine `guest` on the machine `here`, whose own guest has not run. `tsc_scales`:
/// this host's KVM can scale a TSC.
pub fn compare(guest: &Facts, here: &Facts, tsc_scales: bool) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut differ = |what, remedy| differences.push(Difference { what, remedy });
    if guest.vcpus != here.vcpus {
        let what = format!("the source has {}, this machine {}", count(guest.vcpus, "vCPU"), here.vcpus);
        differ(what, format!("start it with --cpus {}", guest.vcpus));
    }
    if guest.ram_bytes != here.ram_bytes {
        let [theirs, ours] = [guest.ram_bytes, here.ram_bytes].map(size);
        differ(
            format!("the source has {theirs} of RAM, this machine {ours}"),
            format!("start it with --memory {theirs}"),
        );
    }
    devices(("disk", "--disk"), &guest.disks, &here.disks, disk, &mut differ);
    devices(("network card", "--net"), &guest.cards, &here.cards, card, &mut differ);
    // Windows follow from the order of all devices: with another number of devices they differ for this reason only.
    if guest.disks.len() == here.disks.len() && guest.cards.len() == here.cards.len() {
        let disks = guest.disks.iter().zip(&here.disks).map(|(guest, here)| [guest.window, here.window]);
        let cards = guest.cards.iter().zip(&here.cards).map(|(guest, here)| [guest.window, here.window]);
        windows(("disk", "--disk"), disks, &mut differ);
        windows(("network card", "--net"), cards, &mut differ);
    }
    processor::compare(&guest.processor, &here.processor, tsc_scales, &mut differences);
    differences
}

/// Compares the devices of a kind, with the label `name` and the option `flag`, one by one.
fn devices<T>(
    (name, flag): (&str, &str),
    guest: &[T],
    here: &[T],
    one: impl Fn(&T, &T, &mut dyn FnMut(&str, String)),
    differ: &mut dyn FnMut(String, String),
) {
    if guest.len() != here.len() {
        let what = format!("the source has {}, this machine {}", count(guest.len() as u32, name), here.len());
        differ(what, format!("give as many {flag}, in the source's order"));
    }
    for (number, (guest, here)) in (1..).zip(guest.iter().zip(here)) {
        one(guest, here, &mut |what, remedy| {
            differ(format!("{name} {number} {what}"), format!("{remedy} as {flag} number {number}"));
        });
    }
}

fn disk(guest: &Disk, here: &Disk, differ: &mut dyn FnMut(&str, String)) {
    if guest.sectors != here.sectors {
        let what = format!("has {} sectors at the source, {} here", guest.sectors, here.sectors);
        differ(&what, "give the source's image".into());
    }
    match (guest.read_only, here.read_only) {
        (true, false) => differ("is read-only at the source, and not here", "give FILE,readonly".into()),
        (false, true) => differ("is read-only here, and not at the source", "give FILE without ,readonly".into()),
        _ => {}
    }
}

fn card(guest: &Card, here: &Card, differ: &mut dyn FnMut(&str, String)) {
    if guest.mac != here.mac {
        let [theirs, ours] = [guest.mac, here.mac].map(mac);
        differ(&format!("has the address {theirs} at the source, {ours} here"), format!("give mac={theirs}"));
    }
}

/// Compares the windows of the devices of a kind at the source and here.
fn windows((name, flag): (&str, &str), both: impl Iterator<Item = [u8; 2]>, differ: &mut dyn FnMut(String, String)) {
    for (number, [guest, here]) in (1..).zip(both).filter(|(_, [guest, here])| guest != here) {
        let what = format!("{name} {number} is in virtio window {guest} at the source, in {here} here");
        differ(what, format!("give the devices in the source's order, this one as {flag} number {number}"));
    }
}

fn count(number: u32, name: &str) -> String {
    if number == 1 { format!("1 {name}") } else { format!("{number} {name}s") }
}

/// Formats a size for `--memory`.
fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) { format!("{}M", bytes >> 20) } else { bytes.to_string() }
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}
