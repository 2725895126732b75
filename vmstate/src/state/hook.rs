//! The results of a device's own hooks and checks, converted into errors of a save or load.

use std::error::Error as StdError;

use crate::codec::Reader;
use crate::error::{Error, ErrorKind, Result};

/// Any error that a hook may return: `&str`, `String`, an error enum, `anyhow::Error`.
pub(crate) type HookError = Box<dyn StdError + Send + Sync>;

/// The result of a hook in a save. An [`Error`] of this library is returned unchanged; any other becomes `Rejected`, with the
/// texts of its sources in the message.
pub fn hook<E: Into<HookError>>(verdict: Result<(), E>, name: &'static str) -> Result<()> {
    verdict.map_err(|refused| refusal(refused.into(), name))
}

/// The result of a hook in a load: as for [`hook`], with the offset.
pub fn load_hook<E: Into<HookError>>(verdict: Result<(), E>, name: &'static str, input: &Reader<'_>) -> Result<()> {
    verdict.map_err(|refused| refusal(refused.into(), name).at(input.offset()))
}

/// The result of a `must_exist` predicate, for [`hook`].
pub fn must_exist(holds: bool, predicate: &'static str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{predicate} is false")) }
}

/// The error for a refusal by the hook or the conversion called `name`.
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
