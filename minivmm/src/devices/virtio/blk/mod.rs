//! virtio-blk (virtio 1.2 §5.2) on a raw image: one queue, one request at a time, in order.

mod backup;
mod bitmap;
mod bitmaps;
mod changes;
mod copy_before_write;
mod disk;
mod image;
mod mark;
mod request;
mod transaction;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_blk::*;
use vmstate::codec::{Reader, Writer};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::schema::{Description, MaybeStatic};

pub use self::backup::{Backup, Stop};
pub use self::bitmap::{BitmapError, Chunk, DirtyBitmap, GRANULARITY};
pub use self::bitmaps::{Bitmaps, Earlier};
pub use self::changes::{Changes, GRANULE};
use self::disk::Disk;
pub use self::image::{Image, SECTOR};
pub use self::mark::Mark;
use self::request::{RANGE_SECTORS_MAX, Request};
pub use self::transaction::Transaction;
use super::{Broken, Io, Limiter, Model, VIRTIO_FIELD};

/// Data segments of one request: QEMU's default queue of 256 less header and status.
const SEGMENTS_MAX: u32 = 254;
/// Bytes of the configuration up to `write_zeroes_may_unmap`, which is what QEMU sends.
const CONFIG_LEN: usize = 57;
/// Offset of `writeback`.
const WRITEBACK: usize = 32;

/// Name of a disk, by its index in the order of all disks: in QMP and in section `dirty-bitmap`. QEMU gives it to the disks of
/// `-drive if=virtio`.
pub fn node_name(index: usize) -> String {
    format!("virtio{index}")
}

/// The disk.
#[derive(Debug)]
pub struct Blk {
    disk: Disk,
    /// Features that are offered.
    features: u64,
    /// Most data segments in one request of the driver.
    segments_max: usize,
    /// Request that was begun and is not answered.
    current: Option<Request>,
    limiter: Limiter,
}

impl Blk {
    /// Makes a disk on `image`.
    pub fn new(image: Arc<Image>) -> Self {
        let features = [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_GEOMETRY,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
        ];
        let mut features = features.iter().fold(0, |all, bit| all | 1 << bit);
        if image.is_read_only() {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        Self { disk: Disk::new(image), features, segments_max: usize::MAX, current: None, limiter: Limiter::default() }
    }

    /// Sets the disk's limits.
    pub fn within(self, limiter: Limiter) -> Self {
        Self { limiter, ..self }
    }
}

impl Blk {
    /// Carries out requests, with the result of [`Model::process`].
    fn serve(&mut self, io: &mut Io<'_>) -> Result<Option<Duration>, Broken> {
        let memory = io.memory;
        loop {
            if io.rings[0].is_ready() {
                io.rings[0].quiet(memory)?;
            }
            let mut wait = None;
            while !io.pausing() {
                wait = self.limiter.wait();
                if wait.is_some() {
                    break;
                }
                let Some(mut request) = self.next(io)? else { break };
                let done = request.step(memory, &mut self.disk)?;
                self.limiter.charge(0, std::mem::take(&mut self.disk.moved));
                if done {
                    io.rings[0].complete(memory, request.head, request.written())?;
                    io.rings[0].signal(memory, io.interrupt)?;
                } else {
                    self.current = Some(request);
                }
            }
            // Also before a pause: the next process that runs the guest must get its kicks.
            if !io.rings[0].is_ready() || !io.rings[0].listen(memory)? || io.pausing() || wait.is_some() {
                return Ok(wait);
            }
        }
    }

    /// Returns the request that was begun, or takes the next one.
    fn next(&mut self, io: &mut Io<'_>) -> Result<Option<Request>, Broken> {
        if let Some(request) = self.current.take() {
            return Ok(Some(request));
        }
        let Some(chain) = io.rings[0].pop(io.memory)? else { return Ok(None) };
        self.limiter.charge(1, 0);
        Request::parse(io.memory, chain, &self.disk, self.segments_max).map(Some)
    }
}

impl Model for Blk {
    const ID: u32 = 2;
    const QUEUES: &'static [u16] = &[256];

    fn features(&self) -> u64 {
        self.features
    }

    /// virtio 1.2 §5.2.4, with QEMU's values: the guest sees the same disk in both.
    fn config(&self) -> Vec<u8> {
        let sectors = self.disk.image.sectors();
        let (heads, track) = (16u8, 63u8);
        let cylinders = (sectors / (u64::from(heads) * u64::from(track))).clamp(2, 16383) as u16;
        let mut config = Vec::with_capacity(CONFIG_LEN);
        config.extend(sectors.to_le_bytes());
        config.extend(0u32.to_le_bytes()); // size_max: none
        config.extend(SEGMENTS_MAX.to_le_bytes());
        config.extend(cylinders.to_le_bytes());
        config.extend([heads, track]);
        config.extend((SECTOR as u32).to_le_bytes()); // blk_size
        config.extend([0; 8]); // topology: blocks of one sector, aligned, no preferred size
        config.push(u8::from(self.disk.write_back));
        config.push(0); // unused
        config.extend(1u16.to_le_bytes()); // num_queues
        config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // discard: sectors, segments, alignment
        config.extend(1u32.to_le_bytes());
        config.extend(1u32.to_le_bytes());
        config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // write zeroes: sectors, segments, may unmap
        config.extend(1u32.to_le_bytes());
        config.push(1);
        config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (WRITEBACK, [value]) = (offset, data) {
            self.disk.write_back = value & 1 != 0;
        }
    }

    /// §5.2.5.2: without FLUSH the disk is write-through.
    fn agree(&mut self, features: u64) {
        let flush = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let selectable = features & 1 << VIRTIO_BLK_F_CONFIG_WCE != 0;
        if !flush && !selectable {
            self.disk.write_back = false;
        }
        if features & 1 << VIRTIO_BLK_F_SEG_MAX != 0 {
            self.segments_max = SEGMENTS_MAX as usize;
        }
    }

    fn reset(&mut self) {
        self.disk.write_back = true;
        self.segments_max = usize::MAX;
        self.current = None;
    }

    /// A request that a pause interrupts keeps its progress here, and its chain is put back: in the saved state it was not
    /// taken. Repeating a part of it is harmless.
    fn process(&mut self, io: &mut Io<'_>) -> Result<Option<Duration>, Broken> {
        if !io.rings[0].resume_suspended() {
            // The queue of the request was reset.
            self.current = None;
        }
        let served = self.serve(io);
        if self.current.is_some() {
            io.rings[0].suspend_last();
        }
        served
    }

    /// Write-back: the only byte of the configuration that the driver can change.
    type State = bool;

    const DESCRIPTION: &'static Description =
        &Description::new(MaybeStatic::Static("virtio-blk"), 2, 2, VIRTIO_FIELD, MaybeStatic::Static(&[]));

    fn state(&self) -> bool {
        self.disk.write_back
    }

    fn set_state(&mut self, write_back: bool) {
        self.disk.write_back = write_back;
    }

    /// The list of requests in flight is empty, since all are finished. An element would begin with 1.
    fn save_state(&mut self, out: &mut Writer) -> Result<()> {
        out.u8(0);
        Ok(())
    }

    fn load_state(&self, config: &[u8], _features: u64, input: &mut Reader<'_>) -> Result<bool> {
        let refuse = |offset, what| Err(Error::new(ErrorKind::Rejected, what).at(offset));
        let theirs = config.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let ours = self.disk.image.sectors();
        // QEMU fills its copy when the guest first reads it: until then it is all zeros.
        let never_read = config.iter().all(|byte| *byte == 0);
        if theirs != ours && !never_read {
            return refuse(
                input.offset(),
                format!("the guest's disk has {theirs} sectors of 512 bytes, the image here has {ours}"),
            );
        }
        let offset = input.offset();
        if input.u8()? != 0 {
            // QEMU keeps requests that failed on the host, in a format that depends on the width of its pointers.
            return refuse(
                offset,
                "disk requests are in flight: let the source finish them (resume it once its disk works again)".into(),
            );
        }
        Ok(never_read || config.get(WRITEBACK).is_none_or(|byte| byte & 1 != 0))
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}
