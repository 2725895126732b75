//! The byte sink of a save: big-endian puts, and the outcomes that the bytes alone do not show.

use std::sync::Arc;

use super::SubsectionVersions;

/// The run-time decisions of one save, in wire order: whether a conditional field or a subsection was sent (0 or 1),
/// how many elements a counted array had, how many bytes a custom field took.
///
/// A description plus its outcomes fixes every offset, which is how the stream's self-description is written
/// without a second walk over the device.
pub type Outcomes = Vec<u32>;

/// A growing buffer of encoded state.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    outcomes: Option<Outcomes>,
    older: Option<Box<Older>>,
}

/// The release for which something is written, unless that is this one.
#[derive(Debug)]
struct Older {
    subsections: Arc<SubsectionVersions>,
    /// What could not be said in it.
    problems: Vec<String>,
}

impl Writer {
    /// An empty buffer that does not record outcomes.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer that records outcomes, for a self-description.
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

    /// Notes a run-time decision; see [`Outcomes`].
    #[inline]
    pub fn outcome(&mut self, value: u32) {
        if let Some(outcomes) = &mut self.outcomes {
            note(outcomes, value);
        }
    }

    /// Writes subsections at these versions from now on, or at their newest; returns what could not be said until now.
    pub(crate) fn limit_subsections(&mut self, subsections: Option<Arc<SubsectionVersions>>) -> Vec<String> {
        let older = subsections.map(|subsections| Box::new(Older { subsections, problems: Vec::new() }));
        std::mem::replace(&mut self.older, older).map_or_else(Vec::new, |before| before.problems)
    }

    /// True if subsections may be written at older versions than their newest.
    #[inline]
    pub(crate) fn limits_subsections(&self) -> bool {
        self.older.is_some()
    }

    /// At which version a subsection is written whose newest and oldest version are these.
    #[inline]
    pub fn subsection_version(&mut self, name: &str, newest: u32, oldest: u32) -> u32 {
        match &mut self.older {
            None => newest,
            Some(older) => older.version(name, newest, oldest),
        }
    }

    /// Bytes in the buffer.
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

    /// The buffer itself, for what stands between the sections, or to empty it and use its memory again.
    #[inline]
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes, and the outcomes (empty if this writer does not record).
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
