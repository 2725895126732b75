//! Descriptor chain, validated, with its buffers as segments.
//!
//! Data is copied through `Bytes` of `vm-memory`, never through pointers, so that written pages become dirty.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress};

use super::{Broken, QUEUE_SIZE_MAX};
use crate::memory::GuestMemory;

/// A validated descriptor chain: device-readable buffers, then device-writable ones.
#[derive(Debug)]
pub struct Chain {
    /// Index of the chain for the used ring.
    pub head: u16,
    /// Buffers from the driver.
    pub readable: Segments,
    /// Buffers for the driver.
    pub writable: Segments,
    /// Number of descriptors, including empty ones.
    pub descriptors: usize,
}

impl Chain {
    /// Most descriptors in a chain, counting the entries of an indirect table. A driver should not exceed its queue's size
    /// (virtio 1.2 §2.7.5.3.1); QEMU accepts as many as its largest queue has (`VIRTQUEUE_MAX_SIZE`).
    pub const DESCRIPTORS_MAX: usize = QUEUE_SIZE_MAX as usize;

    /// Reads and validates the chain.
    ///
    /// # Errors
    /// The chain violates virtio 1.2 §2.7.5: endless, out of bounds, out of order, or too long.
    pub(super) fn read(descriptors: DescriptorChain<&GuestMemory>) -> Result<Self, Broken> {
        let head = descriptors.head_index();
        let mut chain = Self { head, readable: Segments::default(), writable: Segments::default(), descriptors: 0 };
        let mut more = true;
        for descriptor in descriptors {
            if chain.descriptors == Self::DESCRIPTORS_MAX {
                let what = format_args!("descriptor chain at {head} is longer than {} descriptors", chain.descriptors);
                return Err(Broken::new(what));
            }
            chain.descriptors += 1;
            let segment = (descriptor.addr(), descriptor.len());
            if segment.0.checked_add(u64::from(segment.1)).is_none() {
                return Err(Broken::new(format_args!("buffer at {:#x} wraps around", segment.0.0)));
            }
            more = descriptor.has_next();
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(Broken::new("a device-readable descriptor follows a device-writable one"));
            }
        }
        // The iterator ends silently at a bad index, a loop or an unreadable table.
        if more {
            return Err(Broken::new(format_args!("descriptor chain at {head} does not end")));
        }
        Ok(chain)
    }
}

/// Guest buffers, consumed from the front. Whether they are in guest memory is checked when they are accessed.
#[derive(Clone, Debug, Default)]
pub struct Segments(VecDeque<(GuestAddress, u32)>);

impl Segments {
    fn push(&mut self, segment: (GuestAddress, u32)) {
        // An empty buffer is ignored.
        if segment.1 != 0 {
            self.0.push_back(segment);
        }
    }

    /// Whether no bytes are left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of buffers left.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Bytes left.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|segment| u64::from(segment.1)).sum()
    }

    /// Copies the next bytes out of guest memory.
    ///
    /// # Errors
    /// Fewer bytes are left than `data` has, or they are not in guest memory.
    pub fn read(&mut self, memory: &GuestMemory, data: &mut [u8]) -> Result<(), Broken> {
        let mut done = 0;
        while done < data.len() {
            let (address, count) = self.take(data.len() - done)?;
            memory.read_slice(&mut data[done..done + count], address)?;
            done += count;
        }
        Ok(())
    }

    /// Copies `data` to the next bytes of guest memory.
    ///
    /// # Errors
    /// Fewer bytes are left than `data` has, or they are not in guest memory.
    pub fn write(&mut self, memory: &GuestMemory, data: &[u8]) -> Result<(), Broken> {
        let mut done = 0;
        while done < data.len() {
            let (address, count) = self.take(data.len() - done)?;
            memory.write_slice(&data[done..done + count], address)?;
            done += count;
        }
        Ok(())
    }

    /// Splits off the last byte as a segment of its own; `None` if no byte is left.
    pub fn split_last(&mut self) -> Option<Segments> {
        let (address, len) = self.0.back_mut()?;
        *len -= 1;
        let last = GuestAddress(address.0.wrapping_add(u64::from(*len)));
        if *len == 0 {
            self.0.pop_back();
        }
        Some(Segments(VecDeque::from([(last, 1)])))
    }

    /// Takes at most `wanted` contiguous bytes.
    fn take(&mut self, wanted: usize) -> Result<(GuestAddress, usize), Broken> {
        let Some((address, len)) = self.0.front_mut() else {
            return Err(Broken::new(format_args!("buffers are {wanted} bytes too short")));
        };
        let start = *address;
        let count = wanted.min(*len as usize);
        *len -= count as u32;
        *address = GuestAddress(address.0.wrapping_add(count as u64));
        if *len == 0 {
            self.0.pop_front();
        }
        Ok((start, count))
    }
}
