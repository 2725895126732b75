//! A section in parts, for a machine that is attacked: four blocks of 16 bytes. A record that is refused or incomplete
//! changes nothing.

use vmstate::codec::{Outbox, Reader};
use vmstate::error::Result;
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record};

const BLOCKS: usize = 4;
/// In place of a block's number: end of the body.
const END: u32 = u32::MAX;

/// The device.
#[derive(Debug)]
pub struct Flash {
    blocks: [[u8; 16]; BLOCKS],
    sent: usize,
    /// A load has begun and was not cleaned up.
    begun: bool,
}

impl Flash {
    /// A device whose blocks all differ.
    pub fn full() -> Self {
        Self { blocks: [[0x11; 16], [0x22; 16], [0x7e; 16], [0xff; 16]], sent: 0, begun: false }
    }

    /// The content of the blocks.
    ///
    /// # Panics
    /// When a load that began was not cleaned up.
    pub fn saved(&self) -> Vec<u8> {
        assert!(!self.begun, "not cleaned up");
        self.blocks.concat()
    }

    fn read(&mut self, input: &mut Reader<'_>) -> Result<Record> {
        let number = input.u32()?;
        if number == END {
            return Ok(Record::Last);
        }
        let bytes = input.array()?;
        let Some(block) = usize::try_from(number).ok().and_then(|number| self.blocks.get_mut(number)) else {
            return Err(input.malformed(format!("there is no block {number}")));
        };
        *block = bytes;
        Ok(Record::More)
    }
}

impl IterativeSection for Flash {
    fn description(&self) -> &'static Description {
        static FLASH: Description = Description::undescribed("flash", 2, 1);
        &FLASH
    }

    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        (self.sent, self.begun) = (0, true);
        out.put(&4_u32.to_be_bytes());
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        (BLOCKS - self.sent) as u64 * 20
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, _budget: u64) -> Result<bool> {
        for (number, block) in (0_u32..).zip(&self.blocks).skip(self.sent) {
            out.put(&number.to_be_bytes());
            out.put(block);
        }
        out.put(&END.to_be_bytes());
        self.sent = BLOCKS;
        Ok(true)
    }

    fn complete(&mut self, out: &mut Outbox) -> Result<()> {
        self.iterate(out, 0).map(|_| ())
    }

    fn load_start(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
        assert!((1..=2).contains(&version), "version {version}");
        self.begun = true;
        match input.u32()? {
            4 => Ok(Record::Last),
            other => Err(input.malformed(format!("{other} blocks"))),
        }
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        assert!(self.begun, "a part before the start");
        self.read(input)
    }

    fn cleanup(&mut self) {
        assert!(self.begun, "cleaned up twice");
        self.begun = false;
    }
}
