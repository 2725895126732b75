//! Thread that does a device's I/O, and the state that it shares with the transport.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::gate::Gate;
use super::{Broken, ConfigSpace, Interrupt, Model, Ring};
use crate::memory::GuestMemory;
use crate::sandbox::{self, Kind};
use crate::sync::lock;

/// Context of a model while it works.
#[derive(Debug)]
pub struct Io<'a> {
    /// The queues, in the device's order.
    pub rings: &'a mut [Ring],
    /// Guest memory.
    pub memory: &'a GuestMemory,
    /// Interrupt of the device.
    pub interrupt: &'a Interrupt,
    /// Configuration space that the driver reads.
    pub config: &'a ConfigSpace,
    /// Event of each queue, signalled by a kick.
    pub kicks: &'a [EventFd],
    gate: &'a Gate,
}

impl Io<'_> {
    /// Whether no further piece of work may be begun.
    pub fn pausing(&self) -> bool {
        self.gate.is_closing()
    }
}

/// State that the thread and the transport share.
pub(super) struct Core<M> {
    pub(super) gate: Gate,
    pub(super) interrupt: Interrupt,
    pub(super) config: ConfigSpace,
    pub(super) memory: GuestMemory,
    /// Why the device stopped until a reset.
    fault: Mutex<Option<Broken>>,
    pub(super) kicks: Vec<EventFd>,
    active: Mutex<Active<M>>,
}

/// State that belongs to the holder of the lock: the thread while it works, the transport while the thread is paused.
pub(super) struct Active<M> {
    pub(super) model: M,
    pub(super) rings: Vec<Ring>,
    /// Whether the driver has set DRIVER_OK.
    pub(super) driving: bool,
}

impl<M: Model> Active<M> {
    /// Sets the negotiated features.
    pub(super) fn agree(&mut self, features: u64) {
        self.rings.iter_mut().for_each(|ring| ring.agree(features));
        self.model.agree(features);
    }
}

impl<M: Model> Core<M> {
    pub(super) fn new(model: M, memory: GuestMemory, interrupt: Interrupt, gate: Gate) -> io::Result<Self> {
        Ok(Self {
            gate,
            interrupt,
            config: ConfigSpace::new(model.config()),
            memory,
            fault: Mutex::new(None),
            kicks: M::QUEUES.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?,
            active: Mutex::new(Active {
                model,
                rings: M::QUEUES.iter().map(|_| Ring::new()).collect(),
                driving: false,
            }),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Active<M>> {
        lock(&self.active)
    }

    /// Stops the device between two pieces of work; if it does not stop within this time, it continues, and the result is
    /// false.
    pub(super) fn pause(&self, within: Option<Duration>) -> bool {
        let paused = self.gate.pause(within);
        if paused {
            self.rest();
        }
        paused
    }

    fn rest(&self) {
        let mut active = self.lock();
        let Active { model, rings, .. } = &mut *active;
        if let Err(broken) = model.rest(rings, &self.memory, &self.interrupt) {
            self.set_fault(Some(broken));
        }
    }

    /// Runs `work` while the device is stopped between two pieces of work, and publishes the configuration.
    pub(super) fn quiesced<R>(&self, work: impl FnOnce(&mut Active<M>) -> R) -> R {
        let was_paused = self.gate.is_paused();
        self.pause(None);
        self.stopped(was_paused, work)
    }

    /// Runs `work` like [`quiesced`](Self::quiesced), if the thread stops `within` this time.
    pub(super) fn quiesced_within<R>(&self, within: Duration, work: impl FnOnce(&mut Active<M>) -> R) -> Option<R> {
        let was_paused = self.gate.is_paused();
        self.pause(Some(within)).then(|| self.stopped(was_paused, work))
    }

    fn stopped<R>(&self, was_paused: bool, work: impl FnOnce(&mut Active<M>) -> R) -> R {
        let mut active = self.lock();
        let result = work(&mut active);
        self.config.publish(active.model.config());
        drop(active);
        if !was_paused {
            self.gate.resume();
        }
        result
    }

    pub(super) fn fault(&self) -> Option<Broken> {
        lock(&self.fault).clone()
    }

    pub(super) fn set_fault(&self, fault: Option<Broken>) {
        let tell = fault.is_some();
        self.restore_fault(fault);
        if tell {
            self.interrupt.raise_config();
            // The thread also stops what works beside it.
            let _ = self.gate.wake.write(1);
        }
    }

    /// Sets the fault without an interrupt, since the driver was notified before.
    pub(super) fn restore_fault(&self, fault: Option<Broken>) {
        *lock(&self.fault) = fault;
    }

    /// Works as long as it can; returns the time until there is more work, if that is known.
    pub(super) fn work(&self) -> Option<Duration> {
        let mut active = self.lock();
        let Active { model, rings, driving } = &mut *active;
        let Self { memory, interrupt, config, gate, kicks, .. } = self;
        let due = model.due(interrupt, config);
        if *driving && self.fault().is_none() {
            let mut io = Io { rings, memory, interrupt, config, kicks, gate };
            match model.process(&mut io) {
                Ok(wait) => return wait.into_iter().chain(due).min(),
                Err(broken) => self.set_fault(Some(broken)),
            }
        }
        drop(active);
        // The device is not used or broken: its data plane stops, too.
        self.rest();
        due
    }

    fn run(&self, epoll: &Epoll) {
        let mut events = [EpollEvent::default(); 8];
        while self.gate.pass() {
            // Rounded up: a timeout that is too short would end in a busy loop.
            let timeout =
                self.work().map_or(-1, |wait| wait.as_millis().saturating_add(1).try_into().unwrap_or(i32::MAX));
            // It does not matter which event it was, since the model checks all queues; so a signal or an (impossible) error
            // only causes one more check.
            let _ = epoll.wait(timeout, &mut events);
        }
    }
}

impl<M> fmt::Debug for Core<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("interrupt", &self.interrupt).field("fault", &self.fault).finish_non_exhaustive()
    }
}

/// How long dropping a device waits for its thread. A thread that a slow disk holds longer ends later, when its system call
/// returns; it owns everything that it uses.
const ENDING: Duration = Duration::from_millis(500);

/// A running thread; dropping this ends the thread after its current piece of work.
pub(super) struct Worker<M: Model> {
    pub(super) core: Arc<Core<M>>,
    /// Disconnected once the thread has ended.
    ended: Receiver<Infallible>,
}

impl<M: Model> Worker<M> {
    pub(super) fn start(core: Core<M>, name: &str) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        // Edge-triggered: each write to an event wakes the thread without the event being read, which saves a system call for
        // each kick; and a source that stays ready while the guest offers no buffers does not wake the thread again and again.
        let watch = |fd: RawFd| {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            epoll.ctl(ControlOperation::Add, fd, event)
        };
        watch(core.gate.wake.as_raw_fd())?;
        {
            let model = &core.lock().model;
            let handled = core.kicks.iter().enumerate().filter(|(queue, _)| model.handles_kicks(*queue));
            handled.map(|(_, kick)| kick.as_raw_fd()).chain(model.source()).try_for_each(watch)?;
        }
        let core = Arc::new(core);
        let theirs = Arc::clone(&core);
        let (alive, ended) = mpsc::channel();
        sandbox::spawn(Kind::Device, name, move || {
            theirs.run(&epoll);
            drop(theirs);
            drop(alive);
        })?;
        Ok(Self { core, ended })
    }

    /// Makes a worker without a thread.
    pub(super) fn without_thread(core: Core<M>) -> Self {
        Self { core: Arc::new(core), ended: mpsc::channel().1 }
    }
}

impl<M: Model> Drop for Worker<M> {
    fn drop(&mut self) {
        self.core.gate.close();
        let _ = self.ended.recv_timeout(ENDING);
    }
}
