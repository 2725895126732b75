//! Other representations of a field or of a whole struct, made for the wire and undone after a load.

use super::hook::{HookError, refusal};
use super::{VmState, Wire};
use crate::codec::{Reader, Writer};
use crate::error::Result;

/// A struct that is made for the wire from `Parent`, and whose values go back into it: what `#[vmstate(tmp = …)]` names
/// (QEMU's `VMSTATE_WITH_TMP`).
///
/// The library also makes this struct before a load, so what a stream does not say stays as it is; and to put back `Parent` after a
/// load that failed: so `apply` has to take whatever `from` made, and change nothing that `from` does not see.
pub trait Temporary<Parent>: VmState + for<'a> From<&'a Parent> {
    /// Takes in what was loaded.
    ///
    /// # Errors
    /// Values that `parent` cannot have; the load is then undone.
    fn apply(self, parent: &mut Parent) -> Result<(), HookError>;
}

/// Appends `value` as the `P` that stands for it.
pub fn save_via<T, P>(value: &T, out: &mut Writer) -> Result<()>
where
    P: Wire + for<'a> From<&'a T>,
{
    P::from(value).save(out)
}

/// Loads the `P` that stands for a `T`. It starts from the value that is there, as a load in place does.
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

/// Loads a temporary of the whole of `parent`.
pub fn load_temporary<T, P: Temporary<T>>(parent: &mut T, input: &mut Reader<'_>) -> Result<()> {
    let offset = input.offset();
    let mut temporary = P::from(parent);
    temporary.load(input)?;
    temporary.apply(parent).map_err(|refused| refusal(refused, "tmp").at(offset))
}

/// Puts back what a load or a hook changed of what `before` was made from.
pub fn undo_temporary<T, P: Temporary<T>>(parent: &mut T, before: P) {
    // It was made from a state of `parent`, so `parent` takes it.
    let _ = before.apply(parent);
}
