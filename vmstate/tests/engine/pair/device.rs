//! A device of the virtual guest: a register and bytes, which may refuse a load.

use vmstate::codec::{Reader, Writer};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::schema::{Description, MaybeStatic};
use vmstate::section::{Section, SectionRules};

/// A device: a register, and a variable number of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub register: u32,
    pub fifo: Vec<u8>,
    pub refuses: bool,
    pub rules: SectionRules,
}

static DEVICE: Description =
    Description::new(MaybeStatic::Static("device"), 2, 1, MaybeStatic::Static(&[]), MaybeStatic::Static(&[]));

impl Section for Device {
    fn description(&self) -> &'static Description {
        &DEVICE
    }

    fn rules(&self) -> SectionRules {
        self.rules
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u32(self.register);
        out.u32(self.fifo.len() as u32);
        out.bytes(&self.fifo);
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<()> {
        let register = input.u32()?;
        let length = input.u32()? as usize;
        input.charge(length)?;
        let fifo = input.take(length)?.to_vec();
        if self.refuses {
            return Err(Error::new(ErrorKind::Rejected, "the device refuses").in_field("register"));
        }
        (self.register, self.fifo) = (register, fifo);
        Ok(())
    }
}
