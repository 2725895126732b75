//! The ticking guest: a bare-metal kernel that prints a character some thousand times a second, and checks and rewrites
//! a page of memory each time. Its console shows when the guest ran and when it did not.

use super::code::TICK_CODE;

/// Number of ticks after which the characters repeat.
const CYCLE: u8 = 64;
/// The character of the first tick.
const FIRST: u8 = b'0';
/// The character printed for a page with wrong content.
pub const WRONG: char = '!';

/// The guest as a bzImage, as [`super::bzimage`].
pub fn bzimage() -> Vec<u8> {
    super::wrap(&TICK_CODE)
}

/// The guest's command line: the number of pages that it works on, in turn; a tick every `span` times 65536 time stamp
/// counter ticks.
pub fn command_line(pages: u64, span: u64) -> String {
    super::command_line(pages, span)
}

/// Whether each tick on a console follows the previous one.
///
/// ```
/// use vmstate_lab::tiny::tick::in_turn;
/// assert!(in_turn("no0") && in_turn("") && !in_turn("02") && !in_turn("00") && !in_turn("0!"));
/// ```
pub fn in_turn(console: &str) -> bool {
    let ticks = console.as_bytes();
    let known = ticks.iter().all(|tick| (FIRST..FIRST + CYCLE).contains(tick));
    known && ticks.windows(2).all(|two| two[1] - FIRST == (two[0] - FIRST + 1) % CYCLE)
}
