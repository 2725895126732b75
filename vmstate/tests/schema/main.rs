//! Descriptions outside of the program: as JSON, for decoding a section's bytes, and locked for later releases.

#[cfg(feature = "tools")]
mod inspect;
#[cfg(feature = "engine")]
mod json;
#[cfg(feature = "tools")]
mod locks;
