//! Every kind of field and attribute, with its bytes written out from QEMU's format.

mod collections;
#[cfg(feature = "tools")]
mod counted;
#[cfg(feature = "engine")]
mod current;
#[cfg(feature = "tools")]
mod each;
#[cfg(feature = "tools")]
mod entries;
#[cfg(feature = "tools")]
mod fields;
#[cfg(feature = "engine")]
mod nested;
#[cfg(feature = "engine")]
mod optional;
mod parts;
#[cfg(feature = "tools")]
mod percent;
mod pointers;
#[cfg(feature = "engine")]
mod represented;
#[cfg(feature = "tools")]
mod seat;
#[cfg(feature = "tools")]
mod shared;
mod subsections;
#[cfg(feature = "tools")]
mod types;
#[cfg(feature = "engine")]
mod unused;
#[cfg(feature = "tools")]
mod values;
#[cfg(feature = "tools")]
mod variant_fields;
#[cfg(feature = "tools")]
mod variants;
