//! The buffer of a save: big-endian writes, and the outcomes that the bytes alone do not show.

use std::sync::Arc;

use super::SubsectionVersions;

/// The run-time decisions of one save, in wire order: whether a conditional field or a subsection was sent (0 or 1),
/// how many elements a counted array had, how many bytes a custom field took.
///
/// A description and its outcomes determine every offset, so the stream's self-description is written without a second walk over
/// the device.
pub type Outcomes = Vec<u32>;

/// A growing buffer of encoded state.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    outcomes: Option<Outcomes>,
    older: Option<Box<Older>>,
}

/// The older release for which a section is written.
#[derive(Debug)]
struct Older {
    subsections: Arc<SubsectionVersions>,
    /// Why some state cannot be represented in that release.
    problems: Vec<String>,
}

impl Writer {
    /// Creates an empty buffer that does not record outcomes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty buffer that records outcomes, for a self-description.
    #[doc(hidden)]
    pub fn recording() -> Self {
        Self { outcomes: Some(Outcomes::new()), ..Self::default() }
    }

    /// Appends raw bytes.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends one byte.
    #[inline]
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends two bytes, big-endian.
    #[inline]
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends four bytes, big-endian.
    #[inline]
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends eight bytes, big-endian.
    #[inline]
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// Appends `count` zero bytes.
    #[inline]
    pub fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    /// Records a run-time decision; see [`Outcomes`].
    #[inline]
    pub fn outcome(&mut self, value: u32) {
        if let Some(outcomes) = &mut self.outcomes {
            note(outcomes, value);
        }
    }

    /// Sets the versions at which subsections are written from now on (`None`: their newest); returns why some state could not be
    /// represented so far.
    pub(crate) fn limit_subsections(&mut self, subsections: Option<Arc<SubsectionVersions>>) -> Vec<String> {
        let older = subsections.map(|subsections| Box::new(Older { subsections, problems: Vec::new() }));
        std::mem::replace(&mut self.older, older).map_or_else(Vec::new, |before| before.problems)
    }

    /// True if subsections may be written at older versions than their newest.
    #[inline]
    pub(crate) fn limits_subsections(&self) -> bool {
        self.older.is_some()
    }

    /// The version at which to write a subsection with this newest and oldest version.
    #[inline]
    pub fn subsection_version(&mut self, name: &str, newest: u32, oldest: u32) -> u32 {
        match &mut self.older {
            None => newest,
            Some(older) => older.version(name, newest, oldest),
        }
    }

    /// Number of bytes in the buffer.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The buffer itself, for bytes between sections, or to clear and reuse it.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The written bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The written bytes and the outcomes (empty if this writer does not record them).
    #[doc(hidden)]
    pub fn into_parts(self) -> (Vec<u8>, Outcomes) {
        (self.bytes, self.outcomes.unwrap_or_default())
    }
}

/// Not inline: one copy of the code for all fields.
#[inline(never)]
fn note(outcomes: &mut Outcomes, value: u32) {
    outcomes.push(value);
}

impl Older {
    #[cold]
    fn version(&mut self, name: &str, newest: u32, oldest: u32) -> u32 {
        match self.subsections.version(name, newest, oldest) {
            Ok(version) => version,
            Err(problem) => {
                self.problems.push(problem);
                newest
            }
        }
    }
}
