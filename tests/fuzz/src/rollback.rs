//! Checks each load: it fails and leaves the device unchanged, or it loads a state that saves and loads as itself.

use std::fmt;

use vmstate::Section;
use vmstate::codec::{Limits, Reader, Writer};
use vmstate::error::Result;
use vmstate::schema::Description;

/// A device whose loads are checked.
pub struct Rollback<'a>(Box<dyn Section + 'a>);

impl<'a> Rollback<'a> {
    /// Wraps `device`.
    pub fn new(device: impl Section + 'a) -> Self {
        Self(Box::new(device))
    }

    /// The state of the device, as bytes.
    ///
    /// # Panics
    /// When the device does not save: every state that loads must save, too.
    pub fn saved(&mut self) -> Vec<u8> {
        let mut out = Writer::new();
        self.0.save(&mut out).unwrap_or_else(|error| panic!("{}: no save: {error}", self.0.description().name));
        out.into_bytes()
    }
}

impl Section for Rollback<'_> {
    fn description(&self) -> &'static Description {
        self.0.description()
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        self.0.save(out)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> Result<()> {
        let before = self.saved();
        let strictness = input.strictness();
        if let Err(error) = self.0.load(input, version) {
            assert_eq!(self.saved(), before, "changed by a load that failed: {error}");
            return Err(error);
        }
        let loaded = self.saved();
        let mut again = Reader::new(&loaded, 0, strictness, Limits::default()).complete();
        if let Err(error) = self.0.load(&mut again, self.0.description().version) {
            panic!("{}: the state saved after a load does not load: {error}", self.0.description().name);
        }
        assert_eq!(again.rest(), b"", "the load leaves bytes of the saved state");
        assert_eq!(self.saved(), loaded, "the saved state loads as another one");
        Ok(())
    }
}

impl fmt::Debug for Rollback<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rollback").field(&self.0.description().name).finish()
    }
}
