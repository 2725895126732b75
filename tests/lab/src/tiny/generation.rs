//! The generation guest: a bare-metal kernel that prints its generation id when it changes, and the events of its
//! generic event device.

use super::code::GENERATION_CODE;

/// The guest as a bzImage, as [`super::bzimage`].
pub fn bzimage() -> Vec<u8> {
    super::wrap(&GENERATION_CODE)
}

/// The ids printed on the console, in order; a line that is incomplete is left out.
///
/// ```
/// use vmstate_lab::tiny::generation::ids;
/// assert_eq!(ids("i 00000001 2 3 4\ne 00000080\ni 5 6 7 8\ni 9"), ["00000001 2 3 4", "5 6 7 8"]);
/// ```
pub fn ids(console: &str) -> Vec<String> {
    lines(console, "i ")
}

/// The events read from the event device, in hexadecimal.
pub fn events(console: &str) -> Vec<String> {
    lines(console, "e ")
}

fn lines(console: &str, kind: &str) -> Vec<String> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    whole.lines().filter_map(|line| line.trim().strip_prefix(kind)).map(Into::into).collect()
}
