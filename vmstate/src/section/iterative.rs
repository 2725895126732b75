//! Sections that are sent in parts while the guest runs, as guest memory is.

use crate::codec::{Outbox, Reader};
use crate::error::Result;
use crate::schema::Description;

/// State that is too large for the downtime: most of it is sent while the guest runs, in rounds, and only the data written since
/// then is sent in the pause (QEMU's `SaveVMHandlers`). Guest memory is one example; another is a device with megabytes of its
/// own, such as a TPM or flash memory. Register it with [`Sections::add_iterative`](super::Sections::add_iterative), beside the
/// sections that are sent whole.
///
/// # The source
///
/// [`setup`](Self::setup), once; then for each round [`sync`](Self::sync), and [`iterate`](Self::iterate) until nothing of the
/// round is left, in turn with the other sections; in the pause the same once more, then [`complete`](Self::complete). At the
/// end, whether the migration succeeded or not, [`cleanup`](Self::cleanup). A migration that failed may be followed by another
/// one, which begins with `setup` and sends everything again.
///
/// On the wire, `setup` is the body of the START section, each `iterate` that of a PART and `complete` that of the END. A body
/// has no length there: its own bytes must determine where it ends.
///
/// # The destination
///
/// [`load_start`](Self::load_start) once, then [`load_part`](Self::load_part) and [`load_end`](Self::load_end) for each record: a
/// piece of a body that is read whole or not at all. The engine repeats the call as long as it returns [`Record::More`]. If the
/// received bytes end within a record, the call's error is [`ErrorKind::Incomplete`](crate::error::ErrorKind::Incomplete), as
/// [`Reader`] returns it, and the engine calls again from the beginning of that record once more bytes have arrived. So a call
/// must first read all bytes of its record and check them, and change the device last. A record has at most 32 MiB. The engine
/// checks the order of the calls: each START once, parts only between START and END.
///
/// # Writes during the migration
///
/// The device continues to write while its state is copied, so a copy may be half old and half new. That is harmless as long as
/// the data is sent again:
///
/// 1. A writer writes first and then marks the place as written; `iterate` clears the mark first and then reads. (Or both hold
///    the same lock.) In this order, a write is in the bytes that are sent, or its mark is there for the next round.
/// 2. A mark that is set after `sync` waits for the next `sync`. So a round ends although the device continues to write.
/// 3. After [`Machine::pause`](crate::migrate::Machine::pause), nothing is written.
/// 4. The last of several copies counts: `load_part` overwrites.
///
/// ```
/// use std::collections::BTreeSet;
///
/// use vmstate::codec::{Outbox, Piece, Reader};
/// use vmstate::error::Result;
/// use vmstate::schema::Description;
/// use vmstate::section::{IterativeSection, Record};
///
/// const BLOCK: usize = 512;
/// /// Ends a body, in place of a block's number.
/// const END: u32 = u32::MAX;
///
/// /// A device's flash memory.
/// struct Flash {
///     blocks: Vec<[u8; BLOCK]>,
///     /// Blocks written since the last `sync`, once a migration has begun.
///     written: Option<BTreeSet<u32>>,
///     /// Blocks of this round that are not sent yet.
///     pending: BTreeSet<u32>,
/// }
///
/// impl Flash {
///     fn new(blocks: usize) -> Self {
///         Self { blocks: vec![[0; BLOCK]; blocks], written: None, pending: BTreeSet::new() }
///     }
///
///     /// Writes a block for the guest. The engine has `&mut self` while it reads a block: an `Arc<Mutex<Flash>>` is
///     /// registered, and the device's threads take the same lock for each write.
///     fn write(&mut self, block: u32, bytes: [u8; BLOCK]) {
///         self.blocks[block as usize] = bytes;
///         self.written.as_mut().map(|written| written.insert(block));
///     }
/// }
///
/// impl IterativeSection for Flash {
///     fn description(&self) -> &'static Description {
///         static FLASH: Description = Description::undescribed("flash", 1, 1);
///         &FLASH
///     }
///
///     fn setup(&mut self, out: &mut Outbox) -> Result<()> {
///         out.put(&(self.blocks.len() as u32).to_be_bytes());
///         (self.pending, self.written) = ((0..self.blocks.len() as u32).collect(), Some(BTreeSet::new()));
///         Ok(())
///     }
///
///     fn pending(&mut self) -> u64 {
///         let written = self.written.iter().flatten().filter(|block| !self.pending.contains(block));
///         (self.pending.len() + written.count()) as u64 * (4 + BLOCK as u64)
///     }
///
///     fn sync(&mut self) -> Result<()> {
///         self.pending.append(self.written.get_or_insert_default());
///         Ok(())
///     }
///
///     fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool> {
///         let before = out.len();
///         while let Some(block) = self.pending.pop_first() {
///             out.put(&block.to_be_bytes());
///             out.put(&self.blocks[block as usize]);
///             if out.len() - before >= budget {
///                 break;
///             }
///         }
///         out.put(&END.to_be_bytes());
///         Ok(self.pending.is_empty())
///     }
///
///     fn complete(&mut self, out: &mut Outbox) -> Result<()> {
///         self.iterate(out, u64::MAX).map(|_| ())
///     }
///
///     fn load_start(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
///         let (there, here) = (input.u32()? as usize, self.blocks.len());
///         match there == here {
///             true => Ok(Record::Last),
///             false => Err(input.malformed(format!("the source's flash has {there} blocks, this one has {here}"))),
///         }
///     }
///
///     fn load_part(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<Record> {
///         let number = input.u32()?;
///         if number == END {
///             return Ok(Record::Last);
///         }
///         let bytes = input.array()?;
///         let Some(block) = self.blocks.get_mut(number as usize) else {
///             return Err(input.malformed(format!("there is no block {number}")));
///         };
///         *block = bytes;
///         Ok(Record::More)
///     }
///
///     fn cleanup(&mut self) {
///         (self.written, self.pending) = (None, BTreeSet::new());
///     }
/// }
///
/// // The calls of a migration, shortened.
/// let (mut source, mut destination) = (Flash::new(3), Flash::new(3));
/// source.write(1, [1; BLOCK]);
/// let (mut start, mut parts) = (Outbox::new(), Outbox::new());
/// source.setup(&mut start)?;
/// source.sync()?;
/// assert_eq!(source.pending(), 3 * 516);
/// assert!(!source.iterate(&mut parts, 1000)?); // two blocks go
/// source.write(0, [2; BLOCK]); // and one of them is written again
/// assert!(source.iterate(&mut parts, 1000)?);
/// source.sync()?;
/// source.complete(&mut parts)?;
/// source.cleanup();
///
/// let bytes = |out: &Outbox| -> Vec<u8> {
///     let of = |piece: Piece<'_>| if let Piece::Bytes(bytes) = piece { bytes.to_vec() } else { vec![] };
///     out.pieces().flat_map(of).collect()
/// };
/// destination.load_start(&mut Reader::strict(&bytes(&start)), 1)?;
/// let parts = bytes(&parts);
/// let mut input = Reader::strict(&parts);
/// while !input.rest().is_empty() {
///     destination.load_part(&mut input, 1)?;
/// }
/// assert_eq!(destination.blocks, source.blocks);
/// # Ok::<(), vmstate::Error>(())
/// ```
pub trait IterativeSection {
    /// Name and versions; the newest version is sent. The contents of the bodies are not described
    /// ([`Description::undescribed`]).
    fn description(&self) -> &'static Description;

    /// False if the section is not sent in this migration. Called once, before [`setup`](Self::setup).
    fn is_needed(&self) -> bool {
        true
    }

    /// Source: starts recording writes; all of the state is pending. Appends the body of the START section: the properties that
    /// the destination must compare before the first page. It must not contain state that the guest changes.
    ///
    /// # Errors
    /// Why the section cannot be sent. [`cleanup`](Self::cleanup) follows.
    fn setup(&mut self, out: &mut Outbox) -> Result<()>;

    /// Source: an estimate of the bytes that are still to be sent, without a [`sync`](Self::sync). Right after a `sync`, the
    /// estimate must be as exact as possible. Called after each chunk, so it must be cheap. The forecast of the downtime depends
    /// on it.
    fn pending(&mut self) -> u64;

    /// Source, at the beginning of each round and in the pause: adds the places written so far to those pending. Everything
    /// pending then belongs to this round.
    ///
    /// # Errors
    /// A failure of the record of writes; the migration fails.
    fn sync(&mut self) -> Result<()>;

    /// Source: appends the body of a PART section, of about `budget` bytes, with at least one record if something of this round
    /// is left. True if nothing is left. It is called in the pause as in the rounds, so that the remaining state is sent in
    /// chunks as well.
    ///
    /// # Errors
    /// Why state cannot be read; the migration fails.
    fn iterate(&mut self, out: &mut Outbox, budget: u64) -> Result<bool>;

    /// Source, in the pause, when [`iterate`](Self::iterate) has sent everything pending: appends the body of the END section.
    ///
    /// # Errors
    /// Why state cannot be read; the migration fails.
    fn complete(&mut self, out: &mut Outbox) -> Result<()>;

    /// Destination: reads a record of the START section's body and compares it. It must not change guest state: the migration may
    /// still be refused, and another one follow.
    ///
    /// # Errors
    /// Any kind; `Incompatible` if the source's properties do not fit this side.
    fn load_start(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record>;

    /// Destination: reads a record of a PART section's body and applies it.
    ///
    /// # Errors
    /// `Malformed` for a record that no source sends.
    fn load_part(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record>;

    /// Destination: reads a record of the END section's body and applies it. After its last record, the state is complete: an
    /// impossible state must be refused here.
    ///
    /// # Errors
    /// As for [`load_part`](Self::load_part), which the default calls.
    fn load_end(&mut self, input: &mut Reader<'_>, version: u32) -> Result<Record> {
        self.load_part(input, version)
    }

    /// Destination: true if the END may arrive after the guest runs here, in post-copy, as that of QEMU's `dirty-bitmap` does
    /// (`has_postcopy`). A source of this library sends it before.
    fn may_end_in_postcopy(&self) -> bool {
        false
    }

    /// Destination, in post-copy: the connection broke, the source goes on over another one, and records may have been lost. Called
    /// only where [`may_end_in_postcopy`](Self::may_end_in_postcopy) is true. It must not fail, nor may a record that arrives later.
    fn interrupted(&mut self) {}

    /// Either side, once after [`setup`](Self::setup) or [`load_start`](Self::load_start) was called: the migration has ended,
    /// successfully or not. It must not fail.
    fn cleanup(&mut self) {}
}

/// The result of [`IterativeSection::load_part`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// One record was read; another one follows.
    More,
    /// The last record of the section's body was read.
    Last,
    /// As [`Last`](Self::Last), of the START section's body: it was the whole section, and neither parts nor an END follow. QEMU's
    /// `dirty-bitmap` of a guest without bitmaps is such a section.
    Whole,
    /// No record was read: it depends on data that does not come in the stream. The engine calls again, at the same position,
    /// until it gives the source up.
    Awaited,
}
