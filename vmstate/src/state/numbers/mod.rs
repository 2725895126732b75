//! Numbers: single values of a fixed size on the wire.
//!
//! A new integer is a line in `integer`; a type that is sent as another type is a line in `represented`; a rule about allowed
//! values, or about an integer that counts elements, belongs to `limited`.

mod integer;
mod limited;
mod represented;
mod timer;

pub(super) use integer::Prefix;
pub use integer::{Integer, bool_of};
pub(super) use limited::{at_most, outcome};
pub use limited::{
    count_to_load, count_to_save, in_range, load_as, load_at_most, load_equal, save_as, save_at_most, sent_as,
};
#[cfg(feature = "vm-memory")]
pub(super) use represented::represented;
pub use timer::{Deadline, GuestClock, Timer};
