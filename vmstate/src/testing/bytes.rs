//! The bytes of one struct, for tests that compare them with literal bytes.

use crate::codec::Writer;
use crate::state::Wire;

/// The bytes that a save of `state` writes: without name and version, as inside a section.
///
/// ```
/// use vmstate::VmState;
/// use vmstate::testing::bytes;
///
/// #[derive(VmState)]
/// #[vmstate(name = "led")]
/// struct Led {
///     level: u16,
/// }
///
/// assert_eq!(bytes(&mut Led { level: 0x102 }), [1, 2]);
/// ```
///
/// # Panics
/// If the save is refused, with the error.
#[track_caller]
pub fn bytes<T: Wire>(state: &mut T) -> Vec<u8> {
    let mut out = Writer::new();
    match state.save(&mut out) {
        Ok(()) => out.into_bytes(),
        Err(error) => panic!("the save is refused: {error}"),
    }
}
