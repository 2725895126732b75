//! Collections: values whose number is decided at run time.
//!
//! A new collection of values implements [`Sequence`] and is a word in the lists of `list` and `counted`; one of keys with values
//! implements [`Entries`] and is a line in the list of `entries`. Each attribute's encoding of the number is in one file: `len`
//! and `counted` in the files of those names, `list` in `sequence`, `map` in `entries`. These files take the function that saves
//! or loads one element as an argument: by its own type, or by `via` or `with`.

mod counted;
mod entries;
mod len;
mod sequence;

pub use counted::{Counted, Elements, counted};
pub use entries::{Entries, Map, load_key, load_value, load_value_via, save_key};
pub use len::Len;
pub use sequence::{List, ManyOf, Sequence, made, make_via};
