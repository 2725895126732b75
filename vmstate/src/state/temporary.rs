//! Other representations of a field or of a whole struct, created for the wire and converted back after a load.

use super::hook::{HookError, refusal};
use super::{VmState, Wire};
use crate::codec::{Reader, Writer};
use crate::error::Result;

/// A struct that is created for the wire from `Parent`, and applied to `Parent` after a load: the type that `#[vmstate(tmp = …)]`
/// names (QEMU's `VMSTATE_WITH_TMP`).
///
/// The library also creates this struct before a load, so that values missing from the stream stay unchanged, and applies it
/// again to restore `Parent` after a load that failed. So `apply` must accept every value that `from` creates, and change nothing
/// that `from` does not read.
pub trait Temporary<Parent>: VmState + for<'a> From<&'a Parent> {
    /// Applies the loaded values to `parent`.
    ///
    /// # Errors
    /// Values that `parent` cannot have; the load is then undone.
    fn apply(self, parent: &mut Parent) -> Result<(), HookError>;
}

/// Appends `value` converted to a `P`.
pub fn save_via<T, P>(value: &T, out: &mut Writer) -> Result<()>
where
    P: Wire + for<'a> From<&'a T>,
{
    P::from(value).save(out)
}

/// Loads a `P` and converts it to a `T`. The `P` starts from the present value, as in a load in place.
pub fn load_via<T, P>(value: &mut T, input: &mut Reader<'_>) -> Result<()>
where
    P: Wire + for<'a> From<&'a T>,
    T: TryFrom<P, Error: Into<HookError>>,
{
    let offset = input.offset();
    let mut proxy = P::from(value);
    proxy.load(input)?;
    *value = T::try_from(proxy).map_err(|refused| refusal(refused.into(), "via").at(offset))?;
    Ok(())
}

/// Loads a temporary struct of the whole of `parent`.
pub fn load_temporary<T, P: Temporary<T>>(parent: &mut T, input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let mut temporary = P::from(parent);
    temporary.load(input)?;
    temporary.apply(parent).map_err(|refused| refusal(refused, "tmp").at(offset))
}

/// Restores what a load or a hook changed of the values from which `before` was made.
pub fn undo_temporary<T, P: Temporary<T>>(parent: &mut T, before: P) {
    // `before` was made from a state of `parent`, so `parent` accepts it.
    let _ = before.apply(parent);
}
