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

/// As [`command_line`]; the guest also prints how long it waited for a page, if that is longer than `wait` time stamp
/// counter ticks.
pub fn command_line_with_waits(pages: u64, span: u64, wait: u64) -> String {
    format!("{} {wait:x}", command_line(pages, span))
}

/// The ticks on a console without the waits between them, and the waits: the number of ticks printed before each, and the
/// wait in time stamp counter ticks. A wait of which only the end or the beginning is on this console is left out.
///
/// ```
/// use vmstate_lab::tiny::tick::ticks_and_waits;
/// assert_eq!(ticks_and_waits("01(0000abcd)2(ffffffff)"), ("012".to_owned(), vec![(2, 0xabcd), (3, 0xffff_ffff)]));
/// assert_eq!(ticks_and_waits("cd)01(0000"), ("01".to_owned(), vec![]));
/// ```
pub fn ticks_and_waits(console: &str) -> (String, Vec<(usize, u64)>) {
    let mut parts = console.split('(');
    let first = parts.next().unwrap_or_default();
    let mut ticks = first.split_once(')').map_or(first, |(_, rest)| rest).to_owned();
    let mut waits = Vec::new();
    for (wait, rest) in parts.filter_map(|part| part.split_once(')')) {
        waits.extend(u64::from_str_radix(wait, 16).map(|wait| (ticks.len(), wait)));
        ticks += rest;
    }
    (ticks, waits)
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
