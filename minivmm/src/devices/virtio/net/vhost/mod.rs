//! vhost-net: the host's kernel moves frames between a card's rings and its tap, without an exit to this process for each frame
//! (linux/vhost.h; drivers/vhost). Kicks reach it by the events that KVM signals; its interrupts are an event that the card's
//! thread reads, since on virtio-mmio the device sets InterruptStatus.
//!
//! It is started with the rings' indices, is stopped whenever the card's thread would be, and then returns the indices. So the
//! card's section, reset and driver are the same with and without it.

mod log;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use ::vhost::net::VhostNet;
use ::vhost::vhost_kern::net::Net;
use ::vhost::vhost_kern::vhost_binding::{VHOST_F_LOG_ALL, VHOST_VRING_F_LOG};
use ::vhost::{Error, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::log::Log;
use super::backend::DataPlane;
use super::{CONTROL, Ring};
use crate::devices::virtio::{Broken, QUEUE_SIZE_MAX};
use crate::memory::{GuestMemory, OtherWriter, Ram};

use crate::sync::lock;

/// Features that decide the layout of rings and headers. All others concern only the tap and the card.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

const LOG_ALL: u64 = 1 << VHOST_F_LOG_ALL;

/// Why vhost-net cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("vhost=on: {what}; leave it out, and minivmm moves the frames itself")]
pub struct VhostError {
    what: String,
}

/// The kernel refused a request.
#[derive(Debug, thiserror::Error)]
#[error("the host's vhost-net refuses {request}: {error}")]
struct Refused {
    request: &'static str,
    error: Error,
}

impl Refused {
    fn of(request: &'static str) -> impl FnOnce(Error) -> Self {
        move |error| Self { request, error }
    }
}

/// Kernel part of one card. A reset makes a new card in the same place, which shares it.
pub struct Vhost<K = Net<Arc<GuestMemory>>> {
    // Declared first: closing it stops the kernel's access to all other fields and to guest memory.
    kernel: K,
    tap: File,
    /// Ready when one of the two events below is.
    events: Epoll,
    used: EventFd,
    broken: EventFd,
    log: Log,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// Whether writes are logged.
    recording: bool,
}

struct Running {
    features: u64,
    /// Queues that it works on.
    queues: Vec<(usize, VringConfigData)>,
}

impl Vhost {
    /// Opens vhost-net for a card with the frames of `tap` and a guest with this memory.
    ///
    /// # Errors
    /// [`VhostError`]: the kernel lacks vhost-net or a part of it, or access is denied.
    pub fn open(tap: &File, ram: &Ram) -> Result<Self, VhostError> {
        let why = |what: String| VhostError { what };
        let kernel = Net::new(Arc::new(ram.guest().clone())).map_err(|error| {
            why(format!(
                "{error}; it takes the kernel's module vhost_net and the right to read and write /dev/vhost-net"
            ))
        })?;
        let tap = tap.try_clone().map_err(|error| why(error.to_string()))?;
        Self::with(kernel, tap, ram)
    }
}

impl<K: VhostNet> Vhost<K> {
    fn with(kernel: K, tap: File, ram: &Ram) -> Result<Self, VhostError> {
        let no_event = |error: io::Error| VhostError { what: format!("cannot create an eventfd: {error}") };
        let event = || EventFd::new(EFD_NONBLOCK).map_err(no_event);
        let (events, used, broken) = (Epoll::new().map_err(no_event)?, event()?, event()?);
        for event in [&used, &broken] {
            let edges = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            events.ctl(ControlOperation::Add, event.as_raw_fd(), edges).map_err(no_event)?;
        }
        let vhost = Self { kernel, tap, events, used, broken, log: Log::of(ram), state: Mutex::default() };
        vhost.own(ram).map_err(|refused| VhostError { what: refused.to_string() })?;
        let there = vhost.kernel.get_features().unwrap_or_default();
        let missing = (FEATURES | LOG_ALL) & !there;
        if missing != 0 {
            let what =
                format!("the host's vhost-net does not have all that a card needs: it lacks features {missing:#x}");
            return Err(VhostError { what });
        }
        Ok(vhost)
    }

    /// Binds the kernel part to this process, to guest memory and to the log.
    fn own(&self, ram: &Ram) -> Result<(), Refused> {
        self.kernel.set_owner().map_err(Refused::of("VHOST_SET_OWNER"))?;
        let regions = ram.stretches().map(|stretch| VhostUserMemoryRegionInfo {
            guest_phys_addr: stretch.guest_address,
            memory_size: stretch.len,
            userspace_addr: stretch.host_address,
            mmap_offset: 0,
            mmap_handle: -1,
        });
        self.kernel.set_mem_table(&regions.collect::<Vec<_>>()).map_err(Refused::of("VHOST_SET_MEM_TABLE"))?;
        self.kernel.set_log_base(self.log.address(), None).map_err(Refused::of("VHOST_SET_LOG_BASE"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Starts all queues at the indices of `rings`.
    fn begin(&self, running: &Running, log: bool, rings: &[Ring], kicks: &[EventFd]) -> Result<(), Refused> {
        let kernel = &self.kernel;
        self.set_features(running, log)?;
        for (queue, config) in &running.queues {
            let (queue, next) = (*queue, rings[*queue].next_available());
            kernel.set_vring_num(queue, config.queue_size).map_err(Refused::of("VHOST_SET_VRING_NUM"))?;
            kernel.set_vring_base(queue, next).map_err(Refused::of("VHOST_SET_VRING_BASE"))?;
            self.set_address(queue, config, log)?;
            kernel.set_vring_kick(queue, &kicks[queue]).map_err(Refused::of("VHOST_SET_VRING_KICK"))?;
            kernel.set_vring_call(queue, &self.used).map_err(Refused::of("VHOST_SET_VRING_CALL"))?;
            kernel.set_vring_err(queue, &self.broken).map_err(Refused::of("VHOST_SET_VRING_ERR"))?;
        }
        for (queue, _) in &running.queues {
            kernel.set_backend(*queue, Some(&self.tap)).map_err(Refused::of("VHOST_NET_SET_BACKEND"))?;
            // Chains that are in the ring already were kicked for at the guest's earlier host, and not here.
            let _ = kicks[*queue].write(1);
        }
        Ok(())
    }

    /// Stops all queues, and waits until the kernel does not use them any more (`vhost_net_set_backend`, drivers/vhost/net.c).
    fn end(&self, running: &Running) -> Result<(), Refused> {
        let ended = running.queues.iter().map(|(queue, _)| self.kernel.set_backend(*queue, None));
        ended.fold(Ok(()), Result::and).map_err(Refused::of("VHOST_NET_SET_BACKEND"))
    }

    fn set_features(&self, running: &Running, log: bool) -> Result<(), Refused> {
        let features = running.features | if log { LOG_ALL } else { 0 };
        self.kernel.set_features(features).map_err(Refused::of("VHOST_SET_FEATURES"))
    }

    /// Sets the addresses of a queue. With the log, writes to the used ring are logged at its guest address.
    fn set_address(&self, queue: usize, config: &VringConfigData, log: bool) -> Result<(), Refused> {
        let flags = if log { 1 << VHOST_VRING_F_LOG } else { 0 };
        let config = VringConfigData { flags, log_addr: log.then_some(config.used_ring_addr), ..*config };
        self.kernel.set_vring_addr(queue, &config).map_err(Refused::of("VHOST_SET_VRING_ADDR"))
    }
}

impl<K: VhostNet + Send + Sync> DataPlane for Vhost<K> {
    fn fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    fn start(&self, rings: &[Ring], features: u64, kicks: &[EventFd]) -> Result<(), Broken> {
        let mut state = self.lock();
        if state.running.is_some() {
            return Ok(());
        }
        let ready = rings.iter().enumerate().take(CONTROL).filter(|(_, ring)| ring.is_ready());
        let queues = ready.map(|(queue, ring)| (queue, ring.config())).collect();
        let running = Running { features: features & FEATURES, queues };
        if let Err(refused) = self.begin(&running, state.recording, rings, kicks) {
            let _ = self.end(&running);
            return Err(Broken::new(refused));
        }
        state.running = Some(running);
        Ok(())
    }

    fn stop(&self, rings: &mut [Ring], memory: &GuestMemory) -> Result<(), Broken> {
        let Some(running) = self.lock().running.take() else { return Ok(()) };
        self.end(&running).map_err(Broken::new)?;
        for (queue, _) in running.queues {
            let next = self.kernel.get_vring_base(queue).map_err(Refused::of("VHOST_GET_VRING_BASE"));
            // An index of a split ring has 16 bits; the upper half is for packed rings.
            rings[queue].take_over(next.map_err(Broken::new)? as u16, memory)?;
        }
        Ok(())
    }

    fn take_interrupt(&self) -> Result<bool, Broken> {
        if self.broken.read().is_ok() {
            return Err(Broken::new("the host's vhost-net finds a ring or a request in it broken"));
        }
        Ok(self.used.read().is_ok())
    }
}

impl<K: VhostNet + Send + Sync> OtherWriter for Vhost<K> {
    /// Switches logging as QEMU does (`vhost_dev_set_log`, hw/virtio/vhost.c), also while it runs. Each request waits for the
    /// kernel's current work on a queue, so all later writes are logged.
    fn record(&self, on: bool) -> io::Result<()> {
        let mut state = self.lock();
        if on {
            self.log.take(|_, _| ());
        }
        let State { running, recording } = &mut *state;
        if let Some(running) = running {
            let addresses = || running.queues.iter().try_for_each(|(queue, at)| self.set_address(*queue, at, on));
            self.set_features(running, on).and_then(|()| addresses()).map_err(io::Error::other)?;
        }
        *recording = on;
        Ok(())
    }

    fn take(&self, take: &mut dyn FnMut(usize, u64)) {
        self.log.take(take);
    }
}

impl Ring {
    /// Layout of the queue for vhost.
    fn config(&self) -> VringConfigData {
        let layout = self.layout();
        VringConfigData {
            queue_max_size: QUEUE_SIZE_MAX,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: layout.descriptors,
            used_ring_addr: layout.used,
            avail_ring_addr: layout.available,
            log_addr: None,
        }
    }
}

impl<K> fmt::Debug for Vhost<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vhost").field("tap", &self.tap).finish_non_exhaustive()
    }
}
