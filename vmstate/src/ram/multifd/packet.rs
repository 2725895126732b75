//! The packets of a page channel, as bytes: every field is checked before it is used.
//!
//! All integers are big-endian.
//!
//! | offset | opening, 64 bytes, once | offset | packet, 1344 bytes, then the pages |
//! | ---: | --- | ---: | --- |
//! | 0 | u32 magic 0x11223344 | 0 | u32 magic, u32 version |
//! | 4 | u32 version 1 | 8 | u32 flags |
//! | 8 | u8 uuid[16] | 12 | u32 room for offsets, u32 normal pages, u32 bytes that follow |
//! | 24 | u8 number of the channel | 24 | u64 number of the packet |
//! | 25 | zero | 32 | u32 zero pages, 28 bytes unused |
//! | | | 64 | RAM block's name, with NUL, 256 bytes |
//! | | | 320 | u64 offsets of 128 pages: first the normal, then the zero ones |

use crate::codec::PageRun;
use crate::error::{Error, ErrorKind, Result};
use crate::ram::{PAGE_SIZE, PageCount, RamBlock};

const MAGIC: u32 = 0x1122_3344;
/// The first bytes of a channel, and of each packet.
pub const MAGIC_BYTES: [u8; 4] = MAGIC.to_be_bytes();
const VERSION: u32 = 1;
/// Size of an opening in bytes.
pub const OPENING: usize = 64;
/// The most pages of a packet (QEMU's `MULTIFD_PACKET_SIZE` of 512 KiB).
pub const PACKET_PAGES: usize = 128;
/// Size of a packet in bytes, without its pages.
pub const HEADER: usize = OFFSETS + 8 * PACKET_PAGES;
/// The most bytes of compressed pages: twice the size of the pages, as in QEMU.
pub const COMPRESSED_MAX: usize = 2 * PACKET_PAGES * 4096;

const BLOCK: usize = 64;
const OFFSETS: usize = 320;

/// `MULTIFD_FLAG_*`.
mod flag {
    pub(super) const SYNC: u32 = 1;
    pub(super) const COMPRESSION: u32 = 0x1f << 1;
    pub(super) const ZLIB: u32 = 1 << 1;
    pub(super) const ZSTD: u32 = 2 << 1;
    pub(super) const QPL: u32 = 4 << 1;
    pub(super) const UADK: u32 = 8 << 1;
    pub(super) const QATZIP: u32 = 16 << 1;
}

/// The encoding of a packet's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Not compressed.
    Raw,
    /// The next part of the channel's zstd stream.
    Zstd,
}

/// The first message of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// A value that all channels of a migration share; a QEMU sends the UUID of its machine, which is zero unless it was
    /// configured.
    pub uuid: [u8; 16],
    /// The channel's number, from 0 on.
    pub id: u8,
}

impl Opening {
    /// Encodes the opening.
    pub fn to_bytes(self) -> [u8; OPENING] {
        let mut bytes = [0; OPENING];
        put(&mut bytes, 0, MAGIC_BYTES);
        put(&mut bytes, 4, VERSION.to_be_bytes());
        put(&mut bytes, 8, self.uuid);
        put(&mut bytes, 24, [self.id]);
        bytes
    }

    /// Decodes an opening. Bytes without a meaning are ignored: a QEMU may use them.
    ///
    /// # Errors
    /// `Malformed` if the bytes are not an opening, `Incompatible` for another version.
    pub fn read(bytes: &[u8; OPENING]) -> Result<Self> {
        check_magic(bytes)?;
        let [id] = take(bytes, 24);
        Ok(Self { uuid: take(bytes, 8), id })
    }
}

/// Pages of one block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketPages {
    /// Index of the block.
    pub block: usize,
    /// Offsets of the pages whose bytes follow.
    pub normal: Vec<u64>,
    /// Offsets of the zero pages.
    pub zero: Vec<u64>,
}

impl PacketPages {
    /// The number of pages of each kind.
    pub fn count(&self) -> PageCount {
        PageCount { normal: self.normal.len() as u64, zero: self.zero.len() as u64 }
    }
}

/// A packet without the bytes of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The packet's number; the packets of all channels are numbered together, from 0 on.
    pub number: u64,
    /// True if the channel waits after this packet until all channels have reached their SYNC.
    pub sync: bool,
    /// The encoding of the payload.
    pub coding: Coding,
    /// Size of the payload in bytes.
    pub payload: usize,
    /// The pages; none in a packet that only has a flag.
    pub pages: PacketPages,
}

impl Packet {
    /// A packet with flag SYNC and no pages.
    pub fn sync(number: u64) -> Self {
        Self { number, sync: true, coding: Coding::Raw, payload: 0, pages: PacketPages::default() }
    }

    /// Encodes the packet; `name` is that of the pages' block, and must fit with its NUL.
    pub fn to_bytes(&self, name: &str) -> [u8; HEADER] {
        let Self { number, sync, coding, payload, pages } = self;
        let mut bytes = [0; HEADER];
        let compression = if *coding == Coding::Zstd { flag::ZSTD } else { 0 };
        put(&mut bytes, 0, MAGIC_BYTES);
        put(&mut bytes, 4, VERSION.to_be_bytes());
        put(&mut bytes, 8, (compression | if *sync { flag::SYNC } else { 0 }).to_be_bytes());
        put(&mut bytes, 24, number.to_be_bytes());
        let (normal, zero) = (word(pages.normal.len()), word(pages.zero.len()));
        if normal + zero > 0 {
            put(&mut bytes, 12, word(PACKET_PAGES).to_be_bytes());
            put(&mut bytes, 16, normal.to_be_bytes());
            put(&mut bytes, 20, word(*payload).to_be_bytes());
            put(&mut bytes, 32, zero.to_be_bytes());
            if let Some(room) = bytes.get_mut(BLOCK..OFFSETS - 1) {
                room.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            }
        }
        let offsets = pages.normal.iter().chain(&pages.zero);
        for (room, offset) in bytes.get_mut(OFFSETS..).unwrap_or_default().chunks_exact_mut(8).zip(offsets) {
            room.copy_from_slice(&offset.to_be_bytes());
        }
        bytes
    }

    /// Decodes a packet for a guest with these blocks.
    ///
    /// # Errors
    /// `Malformed`; `Incompatible` for a packet of a kind that is not supported.
    pub fn read(bytes: &[u8; HEADER], blocks: &[RamBlock]) -> Result<Self> {
        check_magic(bytes)?;
        let [flags, room, normal, payload, zero] = [8, 12, 16, 20, 32].map(|at| u32::from_be_bytes(take(bytes, at)));
        let number = u64::from_be_bytes(take(bytes, 24));
        let coding = coding(flags)?;
        let sync = flags & flag::SYNC != 0;
        if room as usize > PACKET_PAGES || normal > room || zero > room - normal {
            let message = format!("{normal} normal and {zero} zero pages, with room for {room} of {PACKET_PAGES}");
            return Err(malformed(message));
        }
        // In a packet without pages, releases of QEMU leave different values in the other fields.
        if normal + zero == 0 {
            return if sync {
                Ok(Self { payload: 0, ..Self::sync(number) })
            } else {
                Err(malformed("neither pages nor a flag".into()))
            };
        }
        let (block, len) = block(bytes, blocks)?;
        let mut offsets =
            bytes.get(OFFSETS..).unwrap_or_default().as_chunks::<8>().0.iter().map(|at| u64::from_be_bytes(*at));
        let mut pages = |count: u32| {
            let taken = offsets.by_ref().take(count as usize);
            taken.map(|offset| check_offset(offset, len)).collect::<Result<Vec<u64>>>()
        };
        let pages = PacketPages { block, normal: pages(normal)?, zero: pages(zero)? };
        let payload = payload as usize;
        let fits = match coding {
            Coding::Raw => payload as u64 == u64::from(normal) * PAGE_SIZE,
            Coding::Zstd => (payload > 0) == (normal > 0) && payload <= COMPRESSED_MAX,
        };
        if !fits {
            return Err(malformed(format!("{payload} bytes for {normal} pages")));
        }
        Ok(Self { number, sync, coding, payload, pages })
    }
}

/// The adjacent pages of a block, as runs.
pub fn runs(block: usize, offsets: &[u64]) -> impl Iterator<Item = PageRun> {
    offsets.chunk_by(|before, next| before.checked_add(PAGE_SIZE) == Some(*next)).map(move |run| PageRun {
        block,
        offset: run.first().copied().unwrap_or_default(),
        len: run.len() as u64 * PAGE_SIZE,
    })
}

fn check_magic(bytes: &[u8]) -> Result<()> {
    let [magic, version] = [0, 4].map(|at| u32::from_be_bytes(take(bytes, at)));
    if magic != MAGIC {
        return Err(malformed(format!("magic {magic:#010x} in place of {MAGIC:#010x}")));
    }
    if version != VERSION {
        return Err(incompatible(format!("version {version} is not {VERSION}")));
    }
    Ok(())
}

fn coding(flags: u32) -> Result<Coding> {
    let unsupported = |what: &str| {
        let message = format!("{what}: set multifd-compression to none or zstd at the source");
        Err(incompatible(message))
    };
    if flags & !(flag::SYNC | flag::COMPRESSION) != 0 {
        return Err(incompatible(format!("a packet with flags {flags:#x}, which are not those of RAM")));
    }
    match flags & flag::COMPRESSION {
        0 => Ok(Coding::Raw),
        flag::ZSTD => Ok(Coding::Zstd),
        flag::ZLIB => unsupported("pages compressed by zlib"),
        flag::QPL => unsupported("pages compressed by qpl"),
        flag::UADK => unsupported("pages compressed by uadk"),
        flag::QATZIP => unsupported("pages compressed by qatzip"),
        _ => Err(malformed(format!("a packet with flags {flags:#x}"))),
    }
}

/// The index and length of the named block.
fn block(bytes: &[u8], blocks: &[RamBlock]) -> Result<(usize, u64)> {
    let field = bytes.get(BLOCK..OFFSETS).unwrap_or_default();
    let Some(end) = field.iter().position(|&byte| byte == 0) else {
        return Err(malformed("the name of the RAM block has no terminating NUL".into()));
    };
    let name = field.get(..end).unwrap_or_default();
    let found = blocks.iter().position(|block| block.name.as_bytes() == name);
    found.and_then(|index| Some((index, blocks.get(index)?.len))).ok_or_else(|| {
        malformed(format!("pages of RAM block {:?}, which does not exist here", String::from_utf8_lossy(name)))
    })
}

fn check_offset(offset: u64, len: u64) -> Result<u64> {
    if offset.is_multiple_of(PAGE_SIZE) && offset < len {
        Ok(offset)
    } else {
        Err(malformed(format!("a page at {offset:#x} of a RAM block of {len:#x} bytes")))
    }
}

fn malformed(message: String) -> Error {
    Error::new(ErrorKind::Malformed, message)
}

fn incompatible(message: String) -> Error {
    Error::new(ErrorKind::Incompatible, message)
}

fn word(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(room) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *room = value;
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}
