//! Migratable virtual-machine device state: a derive macro, QEMU's stream format, and a live-migration engine.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation))]
// Without `tools`, items that only the engine and the tools use are unused; they are not gated one by one.
#![cfg_attr(not(feature = "tools"), allow(dead_code, unused_imports))]

#[cfg(feature = "engine")]
pub mod channel;
pub mod codec;
#[cfg(feature = "engine")]
pub mod compat;
#[cfg(feature = "tools")]
pub mod dump;
pub mod error;
#[cfg(feature = "tools")]
pub mod inspect;
#[cfg(feature = "engine")]
pub mod migrate;
#[cfg(feature = "engine")]
pub mod ownership;
#[cfg(feature = "engine")]
pub mod ram;
pub mod schema;
pub mod section;
pub mod state;
#[cfg(feature = "engine")]
mod stream;
#[cfg(feature = "engine")]
mod sync;
#[cfg(feature = "tools")]
pub mod testing;

#[cfg(feature = "engine")]
pub use channel::{Channel, Clock};
pub use codec::{Limits, Reader, Strictness, Writer};
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "engine")]
pub use migrate::{Claim, Control, Machine};
#[cfg(feature = "engine")]
pub use ram::{DirtyLog, GuestRam, RamBlock};
pub use schema::Description;
#[cfg(feature = "engine")]
pub use schema::json::Schema;
pub use section::Section;
#[cfg(feature = "engine")]
pub use section::Sections;
pub use state::{SectionRules, Temporary, Timer, Unused, VmState, Wire};
pub use vmstate_derive::VmState;

/// Further items for the project's own tests, benchmarks and programs. Not public interface: they change at any time.
#[doc(hidden)]
pub mod raw {
    pub use crate::codec::writer::Outcomes;
    #[cfg(feature = "tools")]
    pub use crate::inspect::hex;
    #[cfg(feature = "engine")]
    pub use crate::schema::vmdesc::vmdesc;

    /// Page records, their sender and their receiver.
    #[cfg(feature = "engine")]
    pub mod ram {
        pub use crate::ram::page_set::PageSet;
        pub use crate::ram::received::{put_received, read_received};
        pub use crate::ram::receiver::{RamReceiver, RamRecord};
        pub use crate::ram::record::*;
        pub use crate::ram::sender::RamSender;
        pub use crate::ram::zero::is_zero;

        /// Pages sent as differences (XBZRLE).
        pub mod xbzrle {
            pub use crate::ram::xbzrle::*;
        }
    }

    /// The packets of page channels, and their connection to a migration.
    #[cfg(feature = "engine")]
    pub mod multifd {
        #[cfg(feature = "zstd")]
        pub use crate::migrate::multifd::zstd::Decompressor;
        pub use crate::ram::multifd::packet::*;
        pub use crate::ram::multifd::pairing::Pairing;
    }

    /// The decision when to switch over.
    #[cfg(feature = "engine")]
    pub mod policy {
        pub use crate::migrate::policy::*;
    }

    /// The protocol state machines of both sides.
    #[cfg(feature = "engine")]
    pub mod protocol {
        pub use crate::migrate::protocol::*;
    }

    /// The grammar of the stream.
    #[cfg(feature = "engine")]
    pub mod stream {
        pub use crate::stream::*;
    }
}

/// The items that derived code names. Not public interface: they change with the derive.
#[doc(hidden)]
pub mod __private {
    pub use crate::section::Section;
    pub use crate::state::support::*;
}

/// Guides for embedders: how to adopt the library, each attribute, releases, migration, bytes.
///
/// # Pages of the repository
///
/// This is the target of some links in these pages: architecture, decisions, faults, tests and `minivmm` have pages in the folder
/// `docs` of the repository, which are not part of the package.
#[cfg(all(any(doc, doctest), feature = "tools"))]
pub mod guide {
    /// One page of `docs/`. Link definitions at the beginning override the page's own, so that its links lead to the pages here.
    macro_rules! page {
        ($name:ident, $file:literal) => {
            #[doc = "[compatibility.md]: crate::guide::compatibility"]
            #[doc = "[derive.md]: crate::guide::derive"]
            #[doc = "[embedding.md]: crate::guide::embedding"]
            #[doc = "[errors.md]: crate::guide::errors"]
            #[doc = "[inspect.md]: crate::guide::inspect"]
            #[doc = "[live-migration.md]: crate::guide::live_migration"]
            #[doc = "[wire-format.md]: crate::guide::wire_format"]
            #[doc = "[wire-format-stream.md]: crate::guide::wire_format_stream"]
            #[doc = "[control.md#cont-after-a-migration]: crate::guide#pages-of-the-repository"]
            #[doc = "[control.md#migration-to-a-file]: crate::guide#pages-of-the-repository"]
            #[doc = "[control.md#query-migrate]: crate::guide#pages-of-the-repository"]
            #[doc = "[observability.md#metrics]: crate::guide#pages-of-the-repository"]
            #[doc = "[control.md#to-a-new-process-on-this-host]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0008-ownership-record.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0009-protocol-core.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0018-a-qemu-at-the-other-end.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0043-the-destination-reports-its-times.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0050-post-copy-commits-at-run.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0051-missing-pages-are-waited-for-by-userfaultfd.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0057-disks-that-come-along.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[minivmm-devices.md#dirty-bitmaps]: crate::guide#pages-of-the-repository"]
            #[doc = "[wire-format-stream.md#dirty-bitmaps]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0064-dirty-bitmaps-are-sent-in-the-rounds.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0063-figures-and-option-of-a-copied-disk.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0069-some-disks-are-copied-and-others-shared.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0070-a-snapshot-copies-the-disks.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0071-a-mapping-names-the-bitmaps-that-migrate.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0058-post-copy-goes-on-over-another-connection.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0060-requested-pages-overtake-the-others.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0023-page-channels.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0026-throttle-by-write-faults.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0027-nobody-waits-at-a-flush.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0032-in-place.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0046-memory-that-stays-where-it-is.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[decisions/0036-speed-behind-jitter.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[faults.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[lab.md#the-guests-verdict]: crate::guide#pages-of-the-repository"]
            #[doc = "[migration-policy.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[performance.md#downtime]: crate::guide#pages-of-the-repository"]
            #[doc = "[performance.md#waits-for-pages]: crate::guide#pages-of-the-repository"]
            #[doc = "[qemu.md]: crate::guide#pages-of-the-repository"]
            #[doc = "[testing.md#compared-with-qemu]: crate::guide#pages-of-the-repository"]
            #[doc = ""]
            #[doc = include_str!(concat!("../docs/", $file))]
            pub mod $name {}
        };
    }

    page!(embedding, "embedding.md");
    page!(derive, "derive.md");
    page!(compatibility, "compatibility.md");
    page!(live_migration, "live-migration.md");
    page!(inspect, "inspect.md");
    page!(errors, "errors.md");
    page!(wire_format, "wire-format.md");
    page!(wire_format_stream, "wire-format-stream.md");
}
