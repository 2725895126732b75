//! What a device's own hooks and checks say, as errors of a save or load.

use std::error::Error as StdError;

use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// Any error that a hook may return: `&str`, `String`, an error enum, `anyhow::Error`.
pub(crate) type HookError = Box<dyn StdError + Send + Sync>;

/// A hook's verdict on a save. An [`Error`] of ours goes on as it is; any other becomes `Rejected`, with the texts of
/// its sources in the message.
pub fn hook<E: Into<HookError>>(verdict: Result<(), E>, name: &'static str) -> Result<()> {
    verdict.map_err(|refused| refusal(refused.into(), name))
}

/// A hook's verdict on a load: as [`hook`], with the offset.
pub fn load_hook<E: Into<HookError>>(verdict: Result<(), E>, name: &'static str, input: &Reader<'_>) -> Result<()> {
    verdict.map_err(|refused| refusal(refused.into(), name).at(input.offset()))
}

/// The verdict of a `must_exist` predicate, for [`hook`].
pub fn must_exist(holds: bool, predicate: &'static str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{predicate} says no")) }
}

/// The error of a refusal by the hook or the conversion called `name`.
#[cold]
pub(crate) fn refusal(refused: HookError, name: &'static str) -> Error {
    match refused.downcast::<Error>() {
        Ok(ours) => *ours,
        Err(theirs) => {
            let mut text = format!("{name}: {theirs}");
            let mut source = theirs.source();
            while let Some(deeper) = source {
                text.push_str(&format!(": {deeper}"));
                source = deeper.source();
            }
            Error::new(ErrorKind::Rejected, text)
        }
    }
}
