//! The destination's memory equals each page's last write before the pause: by vCPUs, by devices, and while the page was checked,
//! read or sent; on each kind of channel, throttled or not, at the first attempt or after cancelled ones. The oracle is a copy of
//! memory that only the writers update.
//!
//! `PROPTEST_CASES=N` runs N cases instead of one for each kind, `PROPTEST_RNG_SEED` selects others.
#![cfg(all(feature = "engine", feature = "vm-memory"))]

mod bytes;
mod cases;
mod guest;
mod memory;
mod rig;

use vmstate::migrate::multifd::Compression;

use cases::Kind;
use rig::{Pages, Wire};

const KINDS: [Kind; 4] = [(false, 0), (true, 0), (false, 1), (true, 2)];

fn each(wires: impl IntoIterator<Item = Wire>) {
    cases::each(wires, &KINDS);
}

#[test]
fn on_the_main_channel() {
    each([false, true].map(|copies| Wire { pages: Pages::Main, copies }));
}

#[test]
fn as_differences_on_the_main_channel() {
    each([false, true].map(|copies| Wire { pages: Pages::Deltas, copies }));
}

#[test]
fn on_page_channels() {
    let wires = [(1, false), (2, false), (4, false), (3, true)];
    each(wires.map(|(channels, copies)| Wire { pages: Pages::PageChannels(channels, Compression::None), copies }));
}

#[cfg(feature = "zstd")]
#[test]
fn compressed_on_page_channels() {
    let wires = [(1, 1, false), (2, 3, true), (4, 1, false)];
    each(wires.map(|(channels, level, copies)| Wire {
        pages: Pages::PageChannels(channels, Compression::Zstd { level }),
        copies,
    }));
}
