//! Split virtqueues: `virtio-queue` with the checks it leaves to the device, and buffers as plain segments.
//!
//! Data goes through `Bytes` of `vm-memory`, never through pointers: that is what marks written pages dirty.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{Interrupt, QUEUE_SIZE_MAX};
use crate::memory::GuestMemory;

/// The guest broke the protocol: what it did. Ends in DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl Broken {
    /// A sentence.
    pub fn new(what: impl fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Self {
        Self::new(error)
    }
}

impl From<vm_memory::GuestMemoryError> for Broken {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        Self::new(error)
    }
}

/// Where a queue lies, as the driver said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// One virtqueue, device side.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    /// The next completion interrupts whatever the driver asked for: after a load it is not known what the last
    /// interrupt covered.
    interrupt_next: bool,
}

impl Ring {
    /// A queue that is not ready.
    pub(super) fn new() -> Self {
        Self { queue: Queue::default(), interrupt_next: false }
    }

    /// A ready queue at `layout`, from its beginning.
    ///
    /// # Errors
    /// Size no power of two or too large, addresses misaligned (virtio 1.2 §2.7) or not wholly in guest memory.
    pub(super) fn at(layout: Layout, event_idx: bool, memory: &GuestMemory) -> Result<Self, Broken> {
        let mut queue = Queue::new(QUEUE_SIZE_MAX)?;
        queue.try_set_size(layout.size)?;
        queue.try_set_desc_table_address(GuestAddress(layout.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(layout.available))?;
        queue.try_set_used_ring_address(GuestAddress(layout.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(memory) || layout.available == 0 {
            return Err(Broken::new(format_args!("queue is not in guest memory: {layout:x?}")));
        }
        Ok(Self { queue, interrupt_next: false })
    }

    /// The same, as a load finds it: the device had consumed up to `next_available`; how far it had answered is in
    /// guest memory.
    ///
    /// # Errors
    /// As [`at`](Self::at), or indices further apart than the queue is long.
    pub(super) fn resume_at(
        layout: Layout,
        event_idx: bool,
        next_available: u16,
        memory: &GuestMemory,
    ) -> Result<Self, Broken> {
        let mut ring = Self::at(layout, event_idx, memory)?;
        let available = ring.queue.avail_idx(memory, Ordering::Acquire)?.0;
        let used = ring.queue.used_idx(memory, Ordering::Acquire)?.0;
        if available.wrapping_sub(next_available) > layout.size {
            return Err(Broken::new(format_args!(
                "available index {available} is more than {} past the device's {next_available}",
                layout.size
            )));
        }
        if next_available.wrapping_sub(used) > layout.size {
            return Err(Broken::new(format_args!(
                "device's index {next_available} is more than {} past the used index {used}",
                layout.size
            )));
        }
        ring.queue.set_next_avail(next_available);
        ring.queue.set_next_used(used);
        ring.interrupt_next = true;
        Ok(ring)
    }

    /// The same ring once more, to go back to.
    pub(super) fn duplicate(&self) -> Self {
        // Its own state is what `try_from` accepts.
        let queue = Queue::try_from(self.queue.state()).unwrap_or_default();
        Self { queue, interrupt_next: true }
    }

    /// True once the driver has set the queue up.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Chains taken and not given back: zero when nothing is in flight.
    pub fn in_flight(&self) -> u16 {
        self.queue.next_avail().wrapping_sub(self.queue.next_used())
    }

    /// Index of the next chain to take.
    pub(super) fn next_available(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Takes the next chain.
    ///
    /// # Errors
    /// Index or chain is not what virtio 1.2 §2.7 allows: too far ahead, endless, out of bounds, out of order.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Broken> {
        if !self.is_ready() {
            return Ok(None);
        }
        let Some(descriptors) = self.queue.iter(memory)?.next() else { return Ok(None) };
        let mut chain =
            Chain { head: descriptors.head_index(), readable: Segments::default(), writable: Segments::default() };
        let mut more = true;
        for descriptor in descriptors {
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
            return Err(Broken::new(format_args!("descriptor chain at {} does not end", chain.head)));
        }
        Ok(Some(chain))
    }

    /// Puts the chain taken last back, to be taken again.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back, `written` bytes of it written.
    ///
    /// # Errors
    /// The used ring is not writable.
    pub fn complete(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), Broken> {
        Ok(self.queue.add_used(memory, head, written)?)
    }

    /// Gives chains back that belong together. The driver sees all or none of them: it takes a frame whose rest is
    /// not there yet for a broken one.
    ///
    /// # Errors
    /// The used ring is not writable.
    pub(super) fn complete_all(&mut self, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), Broken> {
        if let [(head, written)] = chains {
            return self.complete(memory, *head, *written);
        }
        let mut next = self.queue.next_used();
        for (head, written) in chains {
            // §2.7.8: flags and index, two bytes each, then elements of eight bytes.
            let slot = self.queue.used_ring() + 4 + 8 * u64::from(next % self.queue.size());
            let element = u64::from(*written) << 32 | u64::from(*head);
            memory.write_obj(element.to_le(), GuestAddress(slot))?;
            next = next.wrapping_add(1);
        }
        memory.store(next.to_le(), GuestAddress(self.queue.used_ring() + 2), Ordering::Release)?;
        self.queue.set_next_used(next);
        // `virtio-queue` did not count these, and would not see that the driver wants to be told.
        self.interrupt_next = true;
        Ok(())
    }

    /// Interrupts for what was completed since the last call, if the driver wants that.
    ///
    /// # Errors
    /// The available ring is not readable.
    pub fn signal(&mut self, memory: &GuestMemory, interrupt: &Interrupt) -> Result<(), Broken> {
        if self.queue.needs_notification(memory)? | std::mem::take(&mut self.interrupt_next) {
            interrupt.raise_queue();
        }
        Ok(())
    }

    /// Asks the driver not to kick while the device is looking anyway.
    ///
    /// # Errors
    /// The used ring is not writable.
    pub fn quiet(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        Ok(self.queue.disable_notification(memory)?)
    }

    /// Asks for kicks again; true if chains came in the meantime.
    ///
    /// # Errors
    /// The used ring is not writable.
    pub fn listen(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        Ok(self.queue.enable_notification(memory)?)
    }
}

/// A descriptor chain, checked: first what the device reads, then what it writes.
#[derive(Debug)]
pub struct Chain {
    /// Names the chain in the used ring.
    pub head: u16,
    /// From the driver.
    pub readable: Segments,
    /// To the driver.
    pub writable: Segments,
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
