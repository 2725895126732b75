//! Collections: values whose number is decided at run time.
//!
//! A new collection of values is a [`Sequence`] and a word in the lists of `list` and `counted`, one of keys with values has
//! [`Entries`] and a line in the list of `entries`. The way of the number is the attribute's: `len` and `counted` are in the file of
//! that name, `list` in `sequence`, `map` in `entries`. How one element is saved and loaded, these are told: by its own type, or
//! made for the wire and turned back alone (`via`, `with`).

mod counted;
mod entries;
mod len;
mod sequence;

pub use counted::{Counted, Elements, counted};
pub use entries::{Entries, Map, load_key, load_value, load_value_via, save_key};
pub use len::Len;
pub use sequence::{List, ManyOf, Sequence, made, make_via};
