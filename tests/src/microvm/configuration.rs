//! The configuration at the start of a stream, which QEMU describes like a device (`vmstate_configuration`,
//! migration/savevm.c).

use vmstate::codec::{Reader, Writer};
use vmstate::schema::{Kind, MaybeStatic};
use vmstate::{Result, VmState, Wire};

/// The source's configuration. Its version is not on the wire.
#[derive(Debug, Default, VmState)]
#[vmstate(name = "configuration", version = 1)]
#[vmstate(subsection(name = "configuration/capabilities", needed = Self::has_capabilities))]
pub(super) struct Configuration {
    len: u32,
    #[vmstate(buffer, len = len, max = 255)]
    name: Vec<u8>,
    #[vmstate(subsection = "configuration/capabilities")]
    caps_count: u32,
    #[vmstate(subsection = "configuration/capabilities", len = caps_count, max = 64)]
    capabilities: Vec<Capability>,
}

impl Configuration {
    fn has_capabilities(&self) -> bool {
        !self.capabilities.is_empty()
    }
}

/// The name of a capability that is on.
#[derive(Clone, Debug, Default)]
struct Capability(String);

impl Wire for Capability {
    type Undo = String;
    const KIND: Kind = Kind::Custom(MaybeStatic::Static("capability"));

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.outcome(1 + self.0.len() as u32);
        out.u8(self.0.len() as u8);
        out.bytes(self.0.as_bytes());
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.0 = input.name()?.to_owned();
        Ok(())
    }

    fn remember(&self) -> String {
        self.0.clone()
    }

    fn undo(&mut self, undo: String) {
        self.0 = undo;
    }
}
