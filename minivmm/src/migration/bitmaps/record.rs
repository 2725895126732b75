//! Records of section `dirty-bitmap`, as bytes: those of QEMU's migration/block-dirty-bitmap.c.
//!
//! A record begins with a byte of flags, then come the name of the disk and the name of the bitmap, each after a byte with its
//! length; a name that is the previous record's is left out. All integers are big-endian, except words of a bitmap.
//!
//! | flags | record | bytes behind the names |
//! | --- | --- | --- |
//! | 0x10 | a bitmap begins | granularity (`u32`), flags (`u8`) |
//! | 0x40 | bits | first sector (`u64`), sectors (`u32`), bytes of words (`u64`), words |
//! | 0x42 | bits that are all zero | first sector (`u64`), sectors (`u32`) |
//! | 0x20 | the bitmap is complete | |
//! | 0x01 | the body ends; without names | |

use vmstate::codec::{Outbox, Reader};
use vmstate::{Error, ErrorKind, Result};

use crate::devices::virtio::blk::Chunk;

const END: u8 = 0x01;
const ZEROES: u8 = 0x02;
const BITMAP_NAME: u8 = 0x04;
const DEVICE_NAME: u8 = 0x08;
const START: u8 = 0x10;
const COMPLETE: u8 = 0x20;
const BITS: u8 = 0x40;

/// Flag of a bitmap that begins: it records.
const ENABLED: u8 = 0x01;
/// The bitmap is kept in the image.
const PERSISTENT: u8 = 0x02;
/// Older QEMUs set it, and newer ones ignore it.
const AUTOLOAD: u8 = 0x04;

/// Most bytes of words in a record.
const WORDS_MAX: u64 = 1 << 10;

/// A record; a name is absent if it is the previous record's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BitmapRecord<'a> {
    /// Name of the disk.
    pub(super) node: Option<&'a str>,
    /// Name of the bitmap.
    pub(super) name: Option<&'a str>,
    pub(super) content: Content,
}

/// What a record says about its bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    End,
    Start { granularity: u32, recording: bool, persistent: bool },
    Bits(Chunk),
    Complete,
}

impl BitmapRecord<'_> {
    /// Appends the record. Names have at most 255 bytes.
    pub(super) fn put(&self, out: &mut Outbox) {
        let kind = match &self.content {
            Content::End => END,
            Content::Start { .. } => START,
            Content::Bits(chunk) if chunk.words.is_empty() => BITS | ZEROES,
            Content::Bits(_) => BITS,
            Content::Complete => COMPLETE,
        };
        let device = if self.node.is_some() { DEVICE_NAME } else { 0 };
        let bitmap = if self.name.is_some() { BITMAP_NAME } else { 0 };
        out.put(&[kind | device | bitmap]);
        for name in [self.node, self.name].into_iter().flatten() {
            out.put(&[name.len() as u8]);
            out.put(name.as_bytes());
        }
        match &self.content {
            Content::Start { granularity, recording, persistent } => {
                out.put(&granularity.to_be_bytes());
                let enabled = if *recording { ENABLED } else { 0 };
                out.put(&[enabled | if *persistent { PERSISTENT } else { 0 }]);
            }
            Content::Bits(Chunk { start, sectors, words }) => {
                out.put(&start.to_be_bytes());
                out.put(&sectors.to_be_bytes());
                if !words.is_empty() {
                    out.put(&(words.len() as u64 * 8).to_be_bytes());
                    // The lowest byte first, on each host (`hbitmap_serialize_part`, util/hbitmap.c).
                    words.iter().for_each(|word| out.put(&word.to_le_bytes()));
                }
            }
            Content::End | Content::Complete => {}
        }
    }
}

/// Reads a record.
///
/// # Errors
/// `Malformed` for a record that no QEMU sends; `Incomplete`.
pub(super) fn read<'a>(input: &mut Reader<'a>) -> Result<BitmapRecord<'a>> {
    let begins = input.offset();
    let flags = input.u8()?;
    let mut name = |flag: u8| -> Result<Option<&'a str>> {
        if flags & flag == 0 {
            return Ok(None);
        }
        let offset = input.offset();
        let length = input.u8()?;
        let text = std::str::from_utf8(input.take(length.into())?);
        let text = text.map_err(|_| Error::new(ErrorKind::Malformed, "a name is no UTF-8").at(offset))?;
        Ok(Some(text))
    };
    let (node, name) = (name(DEVICE_NAME)?, name(BITMAP_NAME)?);
    let content = match flags & !(DEVICE_NAME | BITMAP_NAME) {
        END if flags == END => Content::End,
        START => {
            let granularity = input.u32()?;
            let offset = input.offset();
            let flags = input.u8()?;
            if flags & !(ENABLED | PERSISTENT | AUTOLOAD) != 0 {
                return Err(
                    Error::new(ErrorKind::Malformed, format!("{flags:#04x} has unknown flags of a bitmap")).at(offset)
                );
            }
            Content::Start { granularity, recording: flags & ENABLED != 0, persistent: flags & PERSISTENT != 0 }
        }
        COMPLETE => Content::Complete,
        kind if kind == BITS | ZEROES => {
            Content::Bits(Chunk { start: input.u64()?, sectors: input.u32()?, words: Vec::new() })
        }
        BITS => {
            let (start, sectors) = (input.u64()?, input.u32()?);
            let offset = input.offset();
            let length = input.u64()?;
            if length == 0 || length > WORDS_MAX || !length.is_multiple_of(8) {
                let message = format!(
                    "{length} bytes of bits are in one record, which has whole words and at most {WORDS_MAX} bytes"
                );
                return Err(Error::new(ErrorKind::Malformed, message).at(offset));
            }
            let (words, _) = input.take(length as usize)?.as_chunks::<8>();
            Content::Bits(Chunk { start, sectors, words: words.iter().map(|word| u64::from_le_bytes(*word)).collect() })
        }
        _ => {
            let message = format!("{flags:#04x} are no flags of a dirty bitmap's record");
            return Err(Error::new(ErrorKind::Malformed, message).at(begins));
        }
    };
    Ok(BitmapRecord { node, name, content })
}
