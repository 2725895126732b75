//! One virtio-blk request: parsed, checked against the disk, done, answered.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::*;

use super::RANGE_SECTORS_MAX;
use super::image::{Image, SECTOR};
use crate::devices::virtio::{Broken, Chain, Segments};
use crate::memory::GuestMemory;

/// Bytes moved at once between image and guest.
const CHUNK: usize = 1 << 20;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// Why a well-formed request fails: the guest gets the matching status.
enum Failure {
    Io,
    Unsupported,
    Broken(Broken),
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// What carries requests out.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) image: Arc<Image>,
    /// Writes may stay in the host's cache until a flush.
    pub(super) write_back: bool,
    buffer: Vec<u8>,
}

impl Worker {
    pub(super) fn new(image: Arc<Image>) -> Self {
        Self { image, write_back: true, buffer: Vec::new() }
    }

    /// Carries `chain` out; bytes written to the guest, the status among them.
    ///
    /// # Errors
    /// No header, no place for a status, or buffers outside guest memory: as QEMU, that breaks the device.
    pub(super) fn execute(&mut self, memory: &GuestMemory, mut chain: Chain) -> Result<u32, Broken> {
        let mut header = [0; 16];
        chain.readable.read(memory, &mut header)?;
        let Some(mut status) = chain.writable.split_last() else {
            return Err(Broken::new("a block request has no place for its status"));
        };
        let capacity = chain.writable.len();
        let answer = match self.dispatch(memory, &header, &mut chain.readable, &mut chain.writable) {
            Ok(()) => OK,
            Err(Failure::Io) => IO_ERROR,
            Err(Failure::Unsupported) => UNSUPPORTED,
            Err(Failure::Broken(broken)) => return Err(broken),
        };
        status.write(memory, &[answer])?;
        Ok((capacity - chain.writable.len()).saturating_add(1).try_into().unwrap_or(u32::MAX))
    }

    fn dispatch(
        &mut self,
        memory: &GuestMemory,
        header: &[u8; 16],
        data_out: &mut Segments,
        data_in: &mut Segments,
    ) -> Result<(), Failure> {
        let [kind, _priority] = [0, 4].map(|at| u32::from_le_bytes(*header[at..].first_chunk().expect("16 bytes")));
        let sector = u64::from_le_bytes(*header.last_chunk().expect("16 bytes"));
        match kind {
            VIRTIO_BLK_T_IN => self.read(memory, sector, data_in),
            VIRTIO_BLK_T_OUT => {
                self.write(memory, sector, data_out)?;
                self.settle()
            }
            VIRTIO_BLK_T_FLUSH => Ok(self.image.flush()?),
            VIRTIO_BLK_T_GET_ID => {
                // The serial number: empty, as QEMU's is unless set.
                let id = vec![0; data_in.len().min(u64::from(VIRTIO_BLK_ID_BYTES)) as usize];
                Ok(data_in.write(memory, &id)?)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.range(memory, kind, data_out)?;
                self.settle()
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Byte offset of a transfer, if all of it is whole sectors on the disk.
    fn place(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let whole = bytes.is_multiple_of(SECTOR);
        let end = sector.checked_add(bytes / SECTOR).filter(|end| whole && *end <= self.image.sectors());
        end.map(|_| sector * SECTOR).ok_or(Failure::Io)
    }

    fn read(&mut self, memory: &GuestMemory, sector: u64, data: &mut Segments) -> Result<(), Failure> {
        let mut offset = self.place(sector, data.len())?;
        while !data.is_empty() {
            let count = data.len().min(CHUNK as u64) as usize;
            self.buffer.resize(count, 0);
            self.image.read(&mut self.buffer, offset)?;
            data.write(memory, &self.buffer)?;
            offset += count as u64;
        }
        Ok(())
    }

    fn write(&mut self, memory: &GuestMemory, sector: u64, data: &mut Segments) -> Result<(), Failure> {
        let mut offset = self.place(sector, data.len())?;
        self.writable()?;
        while !data.is_empty() {
            let count = data.len().min(CHUNK as u64) as usize;
            self.buffer.resize(count, 0);
            data.read(memory, &mut self.buffer)?;
            self.image.write(&self.buffer, offset)?;
            offset += count as u64;
        }
        Ok(())
    }

    /// Discard and write-zeroes: one segment of sector, count and flags (virtio 1.2 §5.2.6).
    fn range(&mut self, memory: &GuestMemory, kind: u32, data: &mut Segments) -> Result<(), Failure> {
        self.writable()?;
        if data.len() != 16 {
            return Err(Failure::Unsupported);
        }
        let mut segment = [0; 16];
        data.read(memory, &mut segment)?;
        let sector = u64::from_le_bytes(*segment.first_chunk().expect("16 bytes"));
        let [count, flags] = [8, 12].map(|at| u32::from_le_bytes(*segment[at..].first_chunk().expect("16 bytes")));
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        // §5.2.6.2: unknown flags, and unmap with a discard, are unsupported.
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && kind == VIRTIO_BLK_T_DISCARD) {
            return Err(Failure::Unsupported);
        }
        if count > RANGE_SECTORS_MAX {
            return Err(Failure::Io);
        }
        let len = u64::from(count) * SECTOR;
        let offset = self.place(sector, len)?;
        if len == 0 {
            return Ok(());
        }
        let done = match kind {
            // A hint: where it cannot be followed, nothing is lost.
            VIRTIO_BLK_T_DISCARD => match self.image.punch(offset, len) {
                Err(error) if cannot(&error) => Ok(()),
                done => done,
            },
            _ if unmap => self.image.punch(offset, len),
            _ => self.image.zero(offset, len),
        };
        match done {
            Err(error) if cannot(&error) => self.write_zeros(offset, len),
            done => Ok(done?),
        }
    }

    fn write_zeros(&mut self, mut offset: u64, mut len: u64) -> Result<(), Failure> {
        self.buffer.clear();
        while len > 0 {
            let count = len.min(CHUNK as u64);
            self.buffer.resize(count as usize, 0);
            self.image.write(&self.buffer, offset)?;
            offset += count;
            len -= count;
        }
        Ok(())
    }

    fn writable(&self) -> Result<(), Failure> {
        if self.image.is_read_only() { Err(Failure::Io) } else { Ok(()) }
    }

    /// With write-through, a write is durable before it is answered (§5.2.6.2).
    fn settle(&self) -> Result<(), Failure> {
        if self.write_back { Ok(()) } else { Ok(self.image.flush()?) }
    }
}

/// The file system has no such operation.
fn cannot(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported) || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}
