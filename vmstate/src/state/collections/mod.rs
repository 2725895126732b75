//! Collections: values whose number is decided at run time.
//!
//! A new collection of values is a [`Sequence`] and a line in the lists of `sequence` and `prefixed`, one of keys with values has
//! [`Entries`] and a line in the list of `entries`. The way of the number is the attribute's: `len` is in `counted`, `counted` in
//! `prefixed`, `list` in `sequence`, `map` in `entries`. How one element is saved and loaded, these are told: by its own type, or
//! made for the wire and turned back alone (`via`, `with`).
//!
//! Each attribute has a trait of its own, since a field with a type that it cannot be put on has to be one error, in its words.

mod counted;
mod entries;
mod prefixed;
mod sequence;

pub use counted::{Counted, counted, counted_bits};
pub use entries::{Entries, Map, load_key, load_value, load_value_via, save_key};
pub use prefixed::{Elements, Own, Prefixed, load_prefixed, prefixed, save_prefixed};
pub use sequence::{List, ManyOf, Sequence, made, make_via};
