//! A descriptor chain: checked whole, its buffers as plain segments.
//!
//! Data goes through `Bytes` of `vm-memory`, never through pointers: that is what marks written pages dirty.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress};

use super::{Broken, QUEUE_SIZE_MAX};
use crate::memory::GuestMemory;

/// A descriptor chain, checked: first what the device reads, then what it writes.
#[derive(Debug)]
pub struct Chain {
    /// Names the chain in the used ring.
    pub head: u16,
    /// From the driver.
    pub readable: Segments,
    /// To the driver.
    pub writable: Segments,
    /// Descriptors that were looked at, of empty buffers as well.
    pub descriptors: usize,
}

impl Chain {
    /// Longest chain, an indirect table counted by its entries. A driver should keep to its queue's size (virtio 1.2
    /// §2.7.5.3.1); QEMU takes as many as its largest queue has (`VIRTQUEUE_MAX_SIZE`).
    pub const DESCRIPTORS_MAX: usize = QUEUE_SIZE_MAX as usize;

    /// Reads the chain.
    ///
    /// # Errors
    /// It is not what virtio 1.2 §2.7.5 allows: endless, out of bounds, out of order, or too long.
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
        // The iterator ends without a word at a bad index, a loop or an unreadable table.
        if more {
            return Err(Broken::new(format_args!("descriptor chain at {head} does not end")));
        }
        Ok(chain)
    }
}

/// Guest buffers in a row, consumed from the front. Whether they are in guest memory shows when they are used.
#[derive(Clone, Debug, Default)]
pub struct Segments(VecDeque<(GuestAddress, u32)>);

impl Segments {
    fn push(&mut self, segment: (GuestAddress, u32)) {
        // A buffer of no bytes says nothing.
        if segment.1 != 0 {
            self.0.push_back(segment);
        }
    }

    /// True if no bytes are left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Buffers left.
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
    /// Fewer are left than `data` takes, or they are not in guest memory.
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
    /// Fewer are left than `data` has, or they are not in guest memory.
    pub fn write(&mut self, memory: &GuestMemory, data: &[u8]) -> Result<(), Broken> {
        let mut done = 0;
        while done < data.len() {
            let (address, count) = self.take(data.len() - done)?;
            memory.write_slice(&data[done..done + count], address)?;
            done += count;
        }
        Ok(())
    }

    /// Takes the last byte off, as a segment of its own; `None` if there is none.
    pub fn split_last(&mut self) -> Option<Segments> {
        let (address, len) = self.0.back_mut()?;
        *len -= 1;
        let last = GuestAddress(address.0.wrapping_add(u64::from(*len)));
        if *len == 0 {
            self.0.pop_back();
        }
        Some(Segments(VecDeque::from([(last, 1)])))
    }

    /// At most `wanted` contiguous bytes.
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
