//! The machine of either side of a pair, whose one exclusive resource is a virtual disk lock. It counts the engine's calls, and
//! refuses those that a test selects.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmstate::error::{Error, ErrorKind, Result};
use vmstate::migrate::{Claim, Control, Machine, Rehearsal};

use super::guest::Guest;
use super::world::{Side, World};

/// The disk that both sides share: who holds its lock, and its ownership record.
#[derive(Debug, Default)]
pub struct Disk {
    pub holder: Option<Side>,
    pub generation: u64,
}

pub type Lock = Arc<Mutex<Disk>>;

/// How a machine's work fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Error,
    Panic,
}

/// A machine that counts the engine's calls.
#[derive(Debug)]
pub struct Vm {
    pub side: Side,
    pub guest: Guest,
    pub world: World,
    /// The disk's lock; `None` if the guest has no disk.
    pub lock: Option<Lock>,
    pub running: bool,
    pub refuses: Option<&'static str>,
    pub pause_takes: Duration,
    /// How long it takes to apply the loaded sections.
    pub loads_within: Duration,
    /// How long cleaning up takes once the guest runs here.
    pub cleans_up_within: Duration,
    /// The guest stands still for a rehearsal.
    pub rehearses: bool,
    /// How its preparations end once the guest is throttled.
    pub throttled_ends: Option<End>,
    /// When the guest last stood still for a rehearsal and continued.
    pub rehearsed: Option<Duration>,
    /// When the guest was paused, and for how long until it ran here again.
    pub paused: Option<Duration>,
    pub pause_lasted: Option<Duration>,
    /// True once the exclusive resources were released.
    pub released: bool,
    /// How often the engine reported that pages arrive, or that the guest has left.
    pub arriving: u32,
    pub departed: u32,
    /// The number of bytes that the source had sent when the guest continued here.
    pub sent_at_resume: Option<usize>,
    /// Cancels in this call of the engine, and keeps the answer.
    pub cancels_at: Option<(&'static str, Control)>,
    pub cancel_granted: Option<bool>,
    /// Allows the switch-over no sooner than this, and makes the guest stand still until then.
    pub holds_until: Option<Duration>,
    /// In post-copy, a thread of the machine accesses this page of the first block in this call of the engine.
    pub touches: Option<(&'static str, u64)>,
    /// How long it receives pages before that access.
    pub touches_after: Duration,
}

impl Vm {
    /// Kills the process: it holds no lock and runs nothing.
    pub fn bury(&mut self) {
        self.running = false;
        if let Some(lock) = &self.lock {
            lock.lock().unwrap().holder.take_if(|holder| *holder == self.side);
        }
    }

    fn refused(&mut self, what: &'static str) -> Result<()> {
        self.world.called(what);
        if let Some((_, control)) = self.cancels_at.as_ref().filter(|(at, _)| *at == what) {
            self.cancel_granted = Some(control.cancel());
        }
        if self.world.is_dead(self.side) {
            return Err(Error::new(ErrorKind::Misuse, "dead"));
        }
        match self.refuses {
            Some(refused) if refused == what => Err(Error::new(ErrorKind::Rejected, format!("no {what}"))),
            _ => Ok(()),
        }
    }
}

impl Vm {
    /// In post-copy, in the call `what`: continues once the page that the thread accesses has arrived.
    fn touch(&mut self, what: &'static str, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Some((_, page)) = self.touches.filter(|(at, _)| *at == what) else { return Ok(()) };
        let until = self.world.now() + self.touches_after;
        while self.world.now() < until {
            serve()?;
        }
        assert!(self.guest.touches(page), "it is not missing");
        while self.guest.waits() {
            serve()?;
        }
        Ok(())
    }
}

impl Machine for Vm {
    fn pause(&mut self, _within: Duration) -> Result<()> {
        self.refused("pause")?;
        self.paused = Some(self.world.now());
        self.world.spend(self.side, self.pause_takes);
        self.guest.set_running(false);
        self.running = false;
        Ok(())
    }

    fn throttle(&mut self, percent: u8) -> bool {
        self.world.called("throttle");
        self.guest.set_throttle(percent);
        self.refuses != Some("throttle")
    }

    fn throttled(&self) -> Duration {
        self.guest.stopped_time()
    }

    fn prepare(&mut self, _go_on: &dyn Fn() -> bool) -> Result<Duration> {
        self.world.called("prepare");
        match self.throttled_ends.filter(|_| self.guest.throttle() > 0) {
            None => Ok(Duration::ZERO),
            Some(End::Error) => Err(Error::new(ErrorKind::Rejected, "no prepare")),
            Some(End::Panic) => panic!("the machine panics"),
        }
    }

    fn may_switch_over(&mut self) -> Result<bool> {
        let holds = self.holds_until.is_some_and(|until| self.world.now() < until);
        if holds {
            self.refused("hold")?;
            self.guest.set_running(false);
            self.running = false;
        }
        Ok(!holds)
    }

    fn rehearse(&mut self) -> Result<Option<Rehearsal>> {
        self.world.called("rehearse");
        self.world.spend(self.side, self.pause_takes);
        self.guest.set_running(false);
        self.rehearses = true;
        Ok(Some(Rehearsal { stop: self.pause_takes, load: Duration::ZERO }))
    }

    fn arriving(&mut self) {
        assert!(self.side == Side::Destination && !self.running);
        self.arriving += 1;
    }

    fn departed(&mut self) {
        assert!(self.side == Side::Source && !self.running && self.released);
        self.departed += 1;
    }

    fn arrived(&mut self) {
        assert!(self.side == Side::Destination && self.running);
        self.world.spend(self.side, self.cleans_up_within);
    }

    fn loaded(&mut self) -> Result<()> {
        self.world.spend(self.side, self.loads_within);
        self.refused("loaded")
    }

    fn loaded_in_postcopy(&mut self, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.touch("loaded", serve)?;
        self.loaded()
    }

    fn resume_in_postcopy(&mut self, serve: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.touch("resume", serve)?;
        self.resume()
    }

    fn resume(&mut self) -> Result<()> {
        if std::mem::take(&mut self.rehearses) {
            self.rehearsed = Some(self.world.now());
            self.guest.set_running(true);
            return Ok(());
        }
        self.refused("resume")?;
        self.sent_at_resume = Some(self.world.sent(Side::Source));
        self.pause_lasted = self.paused.map(|paused| self.world.now() - paused);
        self.running = true;
        self.guest.set_running(true);
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.refused("release")?;
        self.released = true;
        if let Some(lock) = &self.lock {
            let released = lock.lock().unwrap().holder.take();
            assert_eq!(released, Some(self.side));
        }
        Ok(())
    }

    fn claim(&mut self) -> Result<Claim> {
        self.refused("claim")?;
        let Some(lock) = &self.lock else { return Ok(Claim::Undecidable) };
        let mut disk = lock.lock().unwrap();
        match disk.holder {
            Some(holder) if holder != self.side => Ok(Claim::Held),
            // Both sides know the generation with which the migration began.
            _ if disk.generation != 0 => Ok(Claim::Moved),
            _ => {
                disk.holder = Some(self.side);
                Ok(Claim::Won)
            }
        }
    }

    fn advance(&mut self) -> Result<()> {
        self.refused("advance")?;
        if let Some(lock) = &self.lock {
            let mut disk = lock.lock().unwrap();
            assert_eq!(disk.holder, Some(self.side));
            disk.generation += 1;
        }
        Ok(())
    }
}
