//! minivmm's guest memory and dirty log: a destination holds each page's last write before the pause, by a vCPU of KVM, by
//! devices, and while the page was compared, read or sent; on each kind of channel, with cancelled attempts, throttled, and
//! with a guest that resets its machine meanwhile. The oracle is a copy of memory that the writers maintain.
//!
//! `PROPTEST_CASES=N` runs N cases instead of one for each kind, `PROPTEST_RNG_SEED` selects others.

#[path = "../../../vmstate/tests/last_write/bytes.rs"]
mod bytes;
#[path = "../../../vmstate/tests/last_write/cases.rs"]
mod cases;
#[path = "../../../vmstate/tests/last_write/guest.rs"]
mod guest;
mod memory;
#[path = "../../../vmstate/tests/last_write/rig.rs"]
mod rig;
mod vcpu;

use vmstate::migrate::multifd::Compression;

use cases::Kind;
use rig::{Pages, Wire};

/// One case of each kind, because of [`PACE`](memory::PACE).
fn each(pages: Pages, kind: Kind) {
    if let Err(error) = minivmm::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    cases::each([Wire { pages, copies: false }], &[kind]);
}

#[test]
fn on_the_main_channel() {
    each(Pages::Main, (false, 1));
}

#[test]
fn as_what_changed_of_them() {
    each(Pages::Deltas, (true, 0));
}

#[test]
fn on_page_channels() {
    each(Pages::PageChannels(2, Compression::None), (false, 2));
}

#[test]
fn compressed_on_page_channels() {
    each(Pages::PageChannels(2, Compression::Zstd { level: 1 }), (true, 1));
}
