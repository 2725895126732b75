//! A device with memory of its own, which its guest writes with virtual time, also while it is read: a section in parts. The body
//! of the START is the number of blocks as u32; that of PART and END has a u32 number and 16 bytes for each block, then
//! 0xffffffff.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmstate::codec::{Outbox, Reader};
use vmstate::error::Result;
use vmstate::schema::Description;
use vmstate::section::{IterativeSection, Record};

use super::guest::Guest;

pub const BLOCK: usize = 16;
pub const RECORD: u64 = 4 + BLOCK as u64;
const END: u32 = u32::MAX;

pub static FLASH: Description = Description::undescribed("flash", 2, 1);

#[derive(Debug, Default)]
struct Cells {
    blocks: Vec<[u8; BLOCK]>,
    /// Blocks written since the last sync.
    written: BTreeSet<u32>,
    /// Blocks of this round that are not sent yet.
    pending: BTreeSet<u32>,
    /// True while writes are recorded.
    log: bool,
    writes_per_second: f64,
    /// The writes of the guest's running time up to this moment are done.
    written_until: Duration,
    owed: f64,
    random: u64,
    cleanups: u32,
}

/// A handle on the device; clones share the device.
#[derive(Clone, Debug)]
pub struct Flash {
    cells: Arc<Mutex<Cells>>,
    /// The guest that writes to it.
    guest: Option<Guest>,
    /// Reports no pending bytes, whatever is pending.
    pub lies: bool,
    description: &'static Description,
}

impl Flash {
    /// A device full of zeros, without writes.
    pub fn new(blocks: usize) -> Self {
        let cells = Cells { blocks: vec![[0; BLOCK]; blocks], random: 0x9e37_79b9_7f4a_7c15, ..Cells::default() };
        Self { cells: Arc::new(Mutex::new(cells)), guest: None, lies: false, description: &FLASH }
    }

    /// From now on `guest` writes to it this often while it runs; and also to a block before and after that block is read for
    /// sending.
    pub fn written_by(mut self, guest: &Guest, writes_per_second: f64) -> Self {
        self.guest = Some(guest.clone());
        let mut cells = self.cells.lock().unwrap();
        (cells.writes_per_second, cells.written_until) = (writes_per_second, guest.ran());
        drop(cells);
        self
    }

    /// Uses the description of another release.
    pub fn describe(&mut self, description: &'static Description) {
        self.description = description;
    }

    pub fn blocks(&self) -> Vec<[u8; BLOCK]> {
        self.cells.lock().unwrap().blocks.clone()
    }

    pub fn write(&self, block: u32, bytes: [u8; BLOCK]) {
        self.cells.lock().unwrap().write(block, bytes);
    }

    /// Whether writes are recorded, and how many migrations have ended.
    pub fn state(&self) -> (bool, u32) {
        let cells = self.cells.lock().unwrap();
        (cells.log, cells.cleanups)
    }

    fn caught_up<T>(&self, look: impl FnOnce(&mut Cells, bool) -> T) -> T {
        let Some((runs, ran)) = self.guest.as_ref().map(|guest| (guest.is_running(), guest.ran())) else {
            return look(&mut self.cells.lock().unwrap(), false);
        };
        let mut cells = self.cells.lock().unwrap();
        let passed = ran.saturating_sub(cells.written_until);
        cells.written_until = ran;
        cells.owed += passed.as_secs_f64() * cells.writes_per_second;
        while cells.owed >= 1.0 {
            cells.owed -= 1.0;
            cells.scribble();
        }
        let writes = runs && cells.writes_per_second > 0.0;
        look(&mut cells, writes)
    }
}

impl Cells {
    fn write(&mut self, block: u32, bytes: [u8; BLOCK]) {
        self.blocks[block as usize] = bytes;
        if self.log {
            self.written.insert(block);
        }
    }

    /// Writes to a random block.
    fn scribble(&mut self) {
        let block = self.random() % self.blocks.len() as u64;
        self.scribble_at(block as u32);
    }

    fn scribble_at(&mut self, block: u32) {
        let value = self.random();
        self.write(block, [value.to_be_bytes(), (!value).to_be_bytes()].concat().try_into().unwrap());
    }

    /// xorshift64
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl IterativeSection for Flash {
    fn description(&self) -> &'static Description {
        self.description
    }

    fn setup(&mut self, out: &mut Outbox) -> Result<()> {
        self.caught_up(|cells, _| {
            assert!(!cells.log, "set up twice");
            cells.log = true;
            cells.written.clear();
            cells.pending = (0..cells.blocks.len() as u32).collect();
            out.put(&(cells.blocks.len() as u32).to_be_bytes());
        });
        Ok(())
    }

    fn pending(&mut self) -> u64 {
        let lies = self.lies;
        self.caught_up(|cells, _| {
            let pending = cells.pending.union(&cells.written).count() as u64;
            if lies { 0 } else { pending * RECORD }
        })
    }

    fn sync(&mut self) -> Result<()> {
        self.caught_up(|cells, _| {
            let written = std::mem::take(&mut cells.written);
            cells.pending.extend(written);
        });
        Ok(())
    }

    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
        self.caught_up(|cells, writes| {
            let before = out.len();
            while let Some(block) = cells.pending.pop_first() {
                // A write between clearing the mark and the copy, and one right after the copy.
                if writes && block % 64 == 0 {
                    cells.scribble_at(block);
                }
                out.put(&block.to_be_bytes());
                out.put(&cells.blocks[block as usize]);
                if writes && block % 64 == 1 {
                    cells.scribble_at(block);
                }
                if out.len() - before >= budget {
                    break;
                }
            }
            out.put(&END.to_be_bytes());
            Ok(cells.pending.is_empty())
        })
    }

    fn complete(&mut self, out: &mut Outbox) -> Result<()> {
        assert!(self.iterate(out, u64::MAX)?);
        Ok(())
    }

    fn load_start(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
        assert!((1..=2).contains(&version));
        let (there, here) = (input.u32()? as usize, self.blocks().len());
        match there == here {
            true => Ok(Record::Last),
            false => Err(input.malformed(format!("the source has {there} blocks, this machine {here}"))),
        }
    }

    fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
        let number = input.u32()?;
        if number == END {
            return Ok(Record::Last);
        }
        let bytes = input.array()?;
        let mut cells = self.cells.lock().unwrap();
        let Some(block) = cells.blocks.get_mut(number as usize) else {
            return Err(input.malformed(format!("there is no block {number}")));
        };
        *block = bytes;
        Ok(Record::More)
    }

    fn cleanup(&mut self) {
        let mut cells = self.cells.lock().unwrap();
        cells.log = false;
        cells.cleanups += 1;
    }
}
