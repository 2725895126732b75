//! Split virtqueues: `virtio-queue`, with the checks that it leaves to the device.

use std::fmt;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Chain, Interrupt, QUEUE_SIZE_MAX};
use crate::memory::GuestMemory;

/// Protocol violation of the guest, as a sentence; leads to DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl Broken {
    /// Makes the reason for which the device needs a reset.
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

/// Layout of a queue, as set by the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// The device's side of one virtqueue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    /// Whether the next completion interrupts regardless of the driver's wish: after a load it is unknown which chains the last
    /// interrupt covered.
    interrupt_next: bool,
    /// Number of chains after the last taken one that were read and put back, until there are more.
    looked_at: u16,
    /// Whether the last taken chain was put back by [`suspend_last`](Self::suspend_last).
    is_suspended: bool,
}

impl Ring {
    /// Makes a queue that is not ready.
    pub(super) fn new() -> Self {
        Self { queue: Queue::default(), interrupt_next: false, looked_at: 0, is_suspended: false }
    }

    /// Makes a ready queue at `layout`, with indices 0.
    ///
    /// # Errors
    /// The size is no power of two or too large, or the addresses are misaligned (virtio 1.2 §2.7) or not wholly in guest
    /// memory.
    pub(super) fn at(layout: Layout, features: u64, memory: &GuestMemory) -> Result<Self, Broken> {
        let mut queue = Queue::new(QUEUE_SIZE_MAX)?;
        queue.try_set_size(layout.size)?;
        queue.try_set_desc_table_address(GuestAddress(layout.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(layout.available))?;
        queue.try_set_used_ring_address(GuestAddress(layout.used))?;
        queue.set_ready(true);
        if !queue.is_valid(memory) || layout.available == 0 {
            return Err(Broken::new(format_args!("queue is not in guest memory: {layout:x?}")));
        }
        let mut ring = Self { queue, interrupt_next: false, looked_at: 0, is_suspended: false };
        ring.agree(features);
        Ok(ring)
    }

    /// Sets the negotiated features.
    pub(super) fn agree(&mut self, features: u64) {
        self.queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
    }

    /// Makes the queue of a load: the source's device had taken chains up to `next_available`. The used index is in guest
    /// memory, which is not read before the device [continues](Self::go_on).
    ///
    /// # Errors
    /// The errors of [`at`](Self::at).
    pub(super) fn loaded_at(
        layout: Layout,
        features: u64,
        next_available: u16,
        memory: &GuestMemory,
    ) -> Result<Self, Broken> {
        let mut ring = Self::at(layout, features, memory)?;
        ring.queue.set_next_avail(next_available);
        Ok(ring)
    }

    /// Reads the used index, to continue where the source's device stopped.
    ///
    /// # Errors
    /// The used ring is not readable.
    pub(super) fn go_on(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        self.take_over(self.next_available(), memory)
    }

    /// Continues where another device, as the kernel's, stopped: it had taken chains up to `next_available`.
    ///
    /// # Errors
    /// The used ring is not readable.
    pub(super) fn take_over(&mut self, next_available: u16, memory: &GuestMemory) -> Result<(), Broken> {
        self.queue.set_next_avail(next_available);
        self.queue.set_next_used(self.queue.used_idx(memory, Ordering::Acquire)?.0);
        self.interrupt_next = true;
        Ok(())
    }

    /// Returns the layout of the queue.
    pub(super) fn layout(&self) -> Layout {
        Layout {
            size: self.queue.size(),
            descriptors: self.queue.desc_table(),
            available: self.queue.avail_ring(),
            used: self.queue.used_ring(),
        }
    }

    /// Checks that indices, which the guest can write, are no further apart than the queue is long.
    ///
    /// # Errors
    /// The ring's indices are impossible.
    pub(super) fn check_indices(&self, memory: &GuestMemory) -> Result<(), Broken> {
        let available = self.queue.avail_idx(memory, Ordering::Acquire)?.0;
        let (next, used, size) = (self.queue.next_avail(), self.queue.next_used(), self.queue.size());
        if available.wrapping_sub(next) > size {
            let what = format_args!("available index {available} is more than {size} past the device's {next}");
            return Err(Broken::new(what));
        }
        if next.wrapping_sub(used) > size {
            let what = format_args!("device's index {next} is more than {size} past the used index {used}");
            return Err(Broken::new(what));
        }
        Ok(())
    }

    /// Duplicates the ring, to restore it later.
    pub(super) fn duplicate(&self) -> Self {
        // Cannot fail: the state comes from a queue.
        let queue = Queue::try_from(self.queue.state()).unwrap_or_default();
        Self { queue, interrupt_next: true, looked_at: 0, is_suspended: false }
    }

    /// Whether the driver has set the queue up.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Index of the next chain to take.
    pub(super) fn next_available(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Takes the next chain.
    ///
    /// # Errors
    /// Index or chain violate virtio 1.2 §2.7: too far ahead, endless, out of bounds, out of order.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Broken> {
        if !self.is_ready() {
            return Ok(None);
        }
        let Some(descriptors) = self.queue.iter(memory)?.next() else { return Ok(None) };
        self.looked_at = 0;
        Chain::read(descriptors).map(Some)
    }

    /// Puts the last `count` chains back, to be taken again.
    pub fn put_back(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Puts chains back that are too few; they are taken again once the driver has made more available.
    pub fn put_back_until_more(&mut self, count: u16) {
        self.put_back(count);
        self.looked_at = count;
    }

    /// Puts the last chain back while the device is stopped, because its request is unfinished: neither answered nor lost.
    pub fn suspend_last(&mut self) {
        self.put_back(1);
        self.is_suspended = true;
    }

    /// Takes the suspended chain again; returns false if there is none, as in a queue that was set up or loaded since.
    pub fn resume_suspended(&mut self) -> bool {
        if self.is_suspended {
            self.queue.set_next_avail(self.queue.next_avail().wrapping_add(1));
        }
        std::mem::take(&mut self.is_suspended)
    }

    /// Makes the device read chains again that were put back until there are more.
    pub(super) fn look_again(&mut self) {
        self.looked_at = 0;
    }

    /// Whether the driver has made chains available since some were [put back](Self::put_back_until_more).
    ///
    /// # Errors
    /// The available ring is not readable.
    pub fn has_more(&self, memory: &GuestMemory) -> Result<bool, Broken> {
        let available = self.queue.avail_idx(memory, Ordering::Acquire)?.0;
        Ok(available.wrapping_sub(self.queue.next_avail()) != self.looked_at)
    }

    /// Puts a chain into the used ring, with `written` bytes written.
    ///
    /// # Errors
    /// The used ring is not writable.
    pub fn complete(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), Broken> {
        Ok(self.queue.add_used(memory, head, written)?)
    }

    /// Puts chains that belong together into the used ring at once: a driver would take a frame without its rest for a broken
    /// one.
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
        // `virtio-queue` did not count these chains, and would not interrupt for them.
        self.interrupt_next = true;
        Ok(())
    }

    /// Interrupts for the chains that were completed since the last call, if the driver wants that.
    ///
    /// # Errors
    /// The available ring is not readable.
    pub fn signal(&mut self, memory: &GuestMemory, interrupt: &Interrupt) -> Result<(), Broken> {
        if self.queue.needs_notification(memory)? | std::mem::take(&mut self.interrupt_next) {
            interrupt.raise_queue();
        }
        Ok(())
    }

    /// Asks the driver not to kick while the device is working.
    ///
    /// # Errors
    /// The used ring is not writable.
    pub fn quiet(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        Ok(self.queue.disable_notification(memory)?)
    }

    /// Asks for kicks again; returns true if chains came meanwhile. Chains that were put back until there are more do not
    /// count: the driver is asked to kick for the first chain after them.
    ///
    /// # Errors
    /// The used ring is not writable.
    pub fn listen(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_add(self.looked_at));
        let more = self.queue.enable_notification(memory);
        self.queue.set_next_avail(next);
        Ok(more?)
    }
}
