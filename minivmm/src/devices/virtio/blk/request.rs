//! One virtio-blk request: parsed, checked against the disk, carried out in pieces, answered.

use virtio_bindings::virtio_blk::*;

use super::disk::{Disk, Erase, Failure};
use super::image::SECTOR;
use crate::devices::virtio::{Broken, Chain, Segments};
use crate::memory::GuestMemory;

/// Most sectors of one discard or write-zeroes: 2 GiB less a sector, as in QEMU.
pub(super) const RANGE_SECTORS_MAX: u32 = 0x003f_ffff;

/// Status of a request (virtio 1.2 §5.2.6).
type Status = u8;
const OK: Status = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: Status = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: Status = VIRTIO_BLK_S_UNSUPP as u8;

/// A request that was taken and not yet answered.
#[derive(Debug)]
pub(super) struct Request {
    /// Index of the request's chain for the used ring.
    pub(super) head: u16,
    status: Segments,
    written: u64,
    work: Work,
}

/// Remaining work of a request.
#[derive(Debug)]
enum Work {
    Read { offset: u64, data: Segments },
    Write { offset: u64, data: Segments },
    Erase { how: Erase, offset: u64, len: u64 },
    Flush,
    Identify { data: Segments },
    Refuse(Status),
}

impl Request {
    /// Parses the request in `chain`, which may have at most `segments_max` data segments.
    ///
    /// # Errors
    /// Header or status are missing, or buffers are outside guest memory: these break the device, as in QEMU.
    pub(super) fn parse(
        memory: &GuestMemory,
        mut chain: Chain,
        disk: &Disk,
        segments_max: usize,
    ) -> Result<Self, Broken> {
        let mut header = [0; 16];
        chain.readable.read(memory, &mut header)?;
        let Some(status) = chain.writable.split_last() else {
            return Err(Broken::new("a block request has no place for its status"));
        };
        let work = if chain.readable.count() + chain.writable.count() > segments_max {
            Work::Refuse(IO_ERROR)
        } else {
            Work::parse(memory, &header, chain.readable, chain.writable, disk)?.unwrap_or_else(Work::Refuse)
        };
        Ok(Self { head: chain.head, status, written: 0, work })
    }

    /// Carries out the next piece; returns true after the last one, whose status is written.
    ///
    /// # Errors
    /// Buffers outside guest memory.
    pub(super) fn step(&mut self, memory: &GuestMemory, disk: &mut Disk) -> Result<bool, Broken> {
        let status = match self.piece(memory, disk) {
            Ok(None) => return Ok(false),
            Ok(Some(status)) => status,
            Err(Failure::Io) => IO_ERROR,
            Err(Failure::Broken(broken)) => return Err(broken),
        };
        self.status.write(memory, &[status])?;
        self.written += 1;
        Ok(true)
    }

    /// Bytes written to the guest's buffers.
    pub(super) fn written(&self) -> u32 {
        self.written.try_into().unwrap_or(u32::MAX)
    }

    /// Carries out a piece; returns the status if nothing is left to do.
    fn piece(&mut self, memory: &GuestMemory, disk: &mut Disk) -> Result<Option<Status>, Failure> {
        let more = match &mut self.work {
            Work::Read { offset, data } => {
                let count = disk.read(memory, *offset, data)?;
                *offset += count;
                self.written += count;
                !data.is_empty()
            }
            Work::Write { offset, data } => {
                *offset += disk.write(memory, *offset, data)?;
                !data.is_empty()
            }
            Work::Erase { how, offset, len } => {
                let count = disk.erase(*how, *offset, *len)?;
                *offset += count;
                *len -= count;
                *len != 0
            }
            Work::Flush => {
                disk.image.flush()?;
                return Ok(Some(OK));
            }
            Work::Identify { data } => {
                // The serial number is empty, as in QEMU by default.
                let id = vec![0; data.len().min(u64::from(VIRTIO_BLK_ID_BYTES)) as usize];
                data.write(memory, &id)?;
                self.written += id.len() as u64;
                return Ok(Some(OK));
            }
            Work::Refuse(status) => return Ok(Some(*status)),
        };
        if more {
            return Ok(None);
        }
        // §5.2.6.2: with write-through, a write is durable before it is answered.
        if !disk.write_back && !matches!(self.work, Work::Read { .. }) {
            self.work = Work::Flush;
            return Ok(None);
        }
        Ok(Some(OK))
    }
}

impl Work {
    /// Returns the work, or the status with which the request is refused.
    fn parse(
        memory: &GuestMemory,
        header: &[u8; 16],
        data_out: Segments,
        data_in: Segments,
        disk: &Disk,
    ) -> Result<Result<Self, Status>, Broken> {
        let kind = u32::from_le_bytes(*header.first_chunk().expect("16 bytes"));
        let sector = u64::from_le_bytes(*header.last_chunk().expect("16 bytes"));
        let place = |bytes| disk.place(sector, bytes).ok_or(IO_ERROR);
        Ok(match kind {
            VIRTIO_BLK_T_IN => place(data_in.len()).map(|offset| Self::Read { offset, data: data_in }),
            VIRTIO_BLK_T_OUT => {
                place(data_out.len()).and_then(|offset| writable(disk).map(|()| Self::Write { offset, data: data_out }))
            }
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Identify { data: data_in }),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => return Self::parse_range(memory, kind, data_out, disk),
            _ => Err(UNSUPPORTED),
        })
    }

    /// Discard and write-zeroes: one segment of sector, count and flags (virtio 1.2 §5.2.6).
    fn parse_range(
        memory: &GuestMemory,
        kind: u32,
        mut data: Segments,
        disk: &Disk,
    ) -> Result<Result<Self, Status>, Broken> {
        if let Err(status) = writable(disk) {
            return Ok(Err(status));
        }
        if data.len() != 16 {
            return Ok(Err(UNSUPPORTED));
        }
        let mut segment = [0; 16];
        data.read(memory, &mut segment)?;
        let sector = u64::from_le_bytes(*segment.first_chunk().expect("16 bytes"));
        let [count, flags] = [8, 12].map(|at| u32::from_le_bytes(*segment[at..].first_chunk().expect("16 bytes")));
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        let how = match (kind, unmap) {
            (VIRTIO_BLK_T_DISCARD, _) => Erase::Discard,
            (_, true) => Erase::Unmap,
            (_, false) => Erase::Zero,
        };
        // §5.2.6.2: unknown flags, and unmap with a discard, are unsupported.
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && kind == VIRTIO_BLK_T_DISCARD) {
            return Ok(Err(UNSUPPORTED));
        }
        let len = u64::from(count) * SECTOR;
        let offset = disk.place(sector, len).filter(|_| count <= RANGE_SECTORS_MAX);
        Ok(offset.ok_or(IO_ERROR).map(|offset| Self::Erase { how, offset, len }))
    }
}

fn writable(disk: &Disk) -> Result<(), Status> {
    if disk.image.is_read_only() { Err(IO_ERROR) } else { Ok(()) }
}
