//! The machine for the migration engine: the driver changes the run state, and the ownership of disks decides who may run the
//! guest.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use vmstate::ErrorKind;
use vmstate::migrate::{Claim, Control, Machine, Peer, Rehearsal};
use vmstate::ownership::{Ownership, OwnershipError};

use super::comparison::Comparison;
use super::copied::CopiedDisks;
use super::write_back::{WriteBack, failed};
use crate::error::{RateLimitedLog, chain, print_message};
use crate::kvm::throttle::Throttle;
use crate::migration::dirty_log::MachineDirtyLog;
use crate::migration::ownership::{SharedTickets, Tickets};
use crate::sync::lock;
use crate::vm::backends::Backends;
use crate::vm::handle::Handle;
use crate::vm::published::Hold;
use crate::vm::request::{EngineRequest, Refusal, Rehearsing};

/// Machine on either side of a migration.
#[derive(Debug)]
pub(in crate::vm) struct EngineMachine {
    handle: Handle,
    control: Control,
    write_back: WriteBack,
    ownership: Arc<Ownership>,
    /// Ownership tickets of the source.
    tickets: SharedTickets,
    /// Disks whose content is sent; at a destination, those that may receive it.
    copied: CopiedDisks,
    /// At a destination: the guest is in a file, whose source has released its resources.
    from_file: bool,
    /// At a destination: the source reads no answers.
    no_return_path: bool,
    /// Preflight, at a destination.
    comparison: Option<Box<Comparison>>,
    /// At a destination: the driver holds a clone while it populates pages.
    looking: Arc<()>,
    /// At a destination, for messages that any number of sources may cause.
    log: RateLimitedLog,
    /// The guest is stopped for a rehearsal until this is dropped.
    rehearsal: Option<Sender<()>>,
    /// At a source: the destination has mapped the guest's memory, and has its networks.
    in_place: bool,
    /// At a source: the guest is stopped before its switch-over.
    held: bool,
    /// At a source: the destination is a QEMU.
    to_qemu: bool,
    /// Throttle, at a source.
    throttle: Option<Arc<Throttle>>,
    /// Dirty log, at a source.
    dirty_log: Option<MachineDirtyLog>,
}

/// How long a rehearsal waits for the driver, which may be busy.
const TIMEOUT: Duration = Duration::from_millis(200);

/// Niceness of a thread that cleans up (nice(2)). The thread must not starve on a busy host: until it ends, queries say that a
/// migration is active.
const NICE: i32 = 10;

/// Message about an image whose mark could not be removed.
pub(super) const STILL_MARKED: &str = "a disk image is still marked as one on which no guest may be started";

/// Attempts to stop a guest in order to read its state.
const STOP_ATTEMPTS: u32 = 5;

impl EngineMachine {
    pub(super) fn new(handle: Handle, control: Control, backends: &Backends, tickets: &SharedTickets) -> Self {
        Self {
            handle,
            control,
            write_back: backends.write_back.clone(),
            ownership: Arc::clone(&backends.ownership),
            tickets: Arc::clone(tickets),
            copied: CopiedDisks::default(),
            from_file: false,
            no_return_path: false,
            comparison: None,
            looking: Arc::default(),
            log: RateLimitedLog::default(),
            rehearsal: None,
            in_place: false,
            held: false,
            to_qemu: false,
            throttle: None,
            dirty_log: None,
        }
    }

    /// Source: whether the destination turned out to be a QEMU, which writes no ownership record.
    pub(super) fn peer_is_qemu(&self) -> bool {
        self.to_qemu
    }

    /// Sets the throttle and the dirty log of a source.
    pub(super) fn sending(mut self, throttle: &Arc<Throttle>, dirty_log: &MachineDirtyLog) -> Self {
        (self.throttle, self.dirty_log) = (Some(Arc::clone(throttle)), Some(dirty_log.clone()));
        self
    }

    /// Sets the disks whose content is sent, or may arrive.
    pub(super) fn copying(mut self, disks: &CopiedDisks) -> Self {
        self.copied = disks.clone();
        self
    }

    /// Source of a snapshot: the guest keeps its resources here, so its images are not written back for another process, and the guest in
    /// the file has those of `ownership`.
    pub(super) fn keeping_resources(mut self, ownership: &Arc<Ownership>) -> Self {
        (self.write_back, self.ownership) = (WriteBack::new(&[]), Arc::clone(ownership));
        self
    }

    /// Sets whether the destination of this source has mapped the guest's memory and has its networks.
    pub(super) fn in_place(self, in_place: bool) -> Self {
        Self { in_place, ..self }
    }

    /// Sets the preflight of a destination.
    pub(super) fn comparing(mut self, comparison: Comparison) -> Self {
        self.comparison = Some(Box::new(comparison));
        self
    }

    /// Sets that this destination reads a file.
    pub(super) fn reading(&mut self) {
        self.from_file = true;
    }

    /// Source, before the first byte: records that this migration began, and puts the tickets into the stream.
    pub(super) fn begin(&self) -> Result<(), OwnershipError> {
        self.ownership.leave_out(&self.copied.roles());
        let tickets = self.ownership.begin()?;
        *lock(&self.tickets) = Tickets::new(&tickets);
        Ok(())
    }

    fn ask(&self, request: EngineRequest) -> vmstate::Result<()> {
        self.handle.ask(request).map_err(rejected)
    }

    /// Asks the driver, which may touch pages that arrive only while this thread calls `serve`.
    fn ask_serving(
        &self,
        request: EngineRequest,
        serve: &mut dyn FnMut() -> vmstate::Result<()>,
    ) -> vmstate::Result<()> {
        self.handle.ask_meanwhile(request, serve)?.map_err(rejected)
    }

    /// Destination, before a source connects: forgets what another source sent.
    pub(super) fn await_source(&mut self) {
        self.no_return_path = false;
        *lock(&self.tickets) = Tickets::default();
        self.copied.await_source();
    }

    /// Source, before a migration to another release: reads the state in KVM, so that state that the release lacks is found
    /// before the first page. On a host that is too busy for that, it is found later.
    pub(super) fn see_state(&mut self) {
        for _ in 0..STOP_ATTEMPTS {
            if self.control.is_cancelled() {
                return;
            }
            if let Ok(Some(_)) = self.rehearse() {
                // The guest resumes; nothing else is to be done.
                self.rehearsal = None;
                return;
            }
        }
    }

    /// Lists the differences between the resources here and the source's.
    fn foreign_resources(&self) -> Vec<String> {
        let received = lock(&self.tickets).received();
        let wrong = match self.from_file {
            true => self.ownership.recognize(received.as_deref()),
            false => self.ownership.prove(received.as_deref()),
        };
        let wrong = wrong.err().unwrap_or_default();
        wrong.iter().map(|mismatch| chain(mismatch)).collect()
    }
}

impl Machine for EngineMachine {
    /// Images are written back here, while a cancel is still possible, instead of in [`release`](Machine::release).
    fn pause(&mut self, within: Duration) -> vmstate::Result<()> {
        let begun = Instant::now();
        self.ask(EngineRequest::Pause(within)).map_err(|error| {
            let message = format!("the guest could not be paused, for which there were {within:.1?}, and runs on");
            vmstate::Error::new(error.kind(), message).with_source(error)
        })?;
        let go_on = || begun.elapsed() < within && !self.control.is_cancelled();
        let written = match self.write_back.run(&go_on) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) if self.control.is_cancelled() => vmstate::Error::new(ErrorKind::Cancelled, "cancelled"),
            Ok(None) => {
                let message =
                    format!("the disk images were not written back within {within:.1?}: the disk is too slow");
                vmstate::Error::new(ErrorKind::Rejected, message)
            }
            Err(error) => error,
        };
        // The paused machine is unchanged, so it can resume.
        let _ = self.ask(EngineRequest::Resume);
        Err(written)
    }

    fn peer_identified(&mut self, peer: Peer) -> vmstate::Result<()> {
        self.to_qemu = peer == Peer::Qemu;
        if self.to_qemu && !self.copied.roles().is_empty() {
            let why = "the destination is a QEMU, which takes no content of a disk: share the disks, and migrate without --copy-disk";
            return Err(vmstate::Error::new(ErrorKind::Incompatible, why));
        }
        if self.to_qemu && self.in_place {
            // QEMU would keep the descriptors open without using them, so that no card could be attached to them.
            let why = "the destination is a QEMU, which does not take the networks of the guest's cards: migrate to it by uri, with the mode normal";
            return Err(vmstate::Error::new(ErrorKind::Incompatible, why));
        }
        if self.to_qemu {
            print_message(
                "the destination is no minivmm: it gets the sections that QEMU has, and if it does not say that it runs \
                 the guest, nothing can prove whether it does",
            );
        }
        Ok(())
    }

    fn no_return_path(&mut self) {
        self.no_return_path = true;
        if self.from_file {
            return;
        }
        self.log.print(
            "the source reads no answers (a QEMU without the capability return-path): if this machine refuses the guest, \
             QEMU takes the migration for completed all the same, and its command cont brings the guest back there",
        );
    }

    fn prepare(&mut self, go_on: &dyn Fn() -> bool) -> vmstate::Result<Duration> {
        self.write_back.run(go_on)?;
        // The amount that the guest has written meanwhile predicts the amount at the pause.
        self.write_back.run(go_on).map(Option::unwrap_or_default)
    }

    fn may_switch_over(&mut self) -> vmstate::Result<bool> {
        if !self.held {
            if !self.handle.pauses_before_switchover() {
                return Ok(true);
            }
            self.ask(EngineRequest::Hold)?;
            self.held = true;
        }
        Ok(self.handle.migration().hold == Hold::Over)
    }

    fn rehearse(&mut self) -> vmstate::Result<Option<Rehearsal>> {
        let (stopped, is_stopped) = mpsc::channel();
        let (rehearsal, over) = mpsc::channel();
        self.handle.send(EngineRequest::Rehearse(Rehearsing { stopped, over }));
        // A device that is busy now does not predict the pause; the guest runs on.
        let Ok(stop) = is_stopped.recv_timeout(TIMEOUT) else { return Ok(None) };
        self.rehearsal = Some(rehearsal);
        // Writing the state to the destination's KVM takes the reverse of the calls that read it.
        Ok(Some(Rehearsal { stop, load: stop }))
    }

    fn throttle(&mut self, percent: u8) -> bool {
        self.throttle.as_ref().is_some_and(|throttle| throttle.slow(percent))
    }

    fn throttled(&self) -> Duration {
        self.throttle.as_ref().map_or(Duration::ZERO, |throttle| throttle.stopped_time())
    }

    fn compare(&mut self) -> vmstate::Result<()> {
        let differences = self.comparison.iter_mut().flat_map(|comparison| comparison.differences());
        let mut differences: Vec<_> = differences.map(|difference| difference.to_string()).collect();
        differences.extend(self.foreign_resources());
        differences.extend(self.copied.lacking());
        refuse(&differences)?;
        self.ask(EngineRequest::AdoptProcessor)
    }

    fn arriving(&mut self) {
        if Arc::strong_count(&self.looking) == 1 {
            self.handle.send(EngineRequest::Arriving(Arc::clone(&self.looking)));
        }
    }

    fn loaded(&mut self) -> vmstate::Result<()> {
        let mut differences = self.foreign_resources();
        differences.extend(self.copied.incomplete());
        refuse(&differences)?;
        self.ask(EngineRequest::Loaded { may_be_copy: self.no_return_path })
    }

    fn loaded_in_postcopy(&mut self, serve: &mut dyn FnMut() -> vmstate::Result<()>) -> vmstate::Result<()> {
        refuse(&self.foreign_resources())?;
        self.ask_serving(EngineRequest::Loaded { may_be_copy: self.no_return_path }, serve)
    }

    fn resume_in_postcopy(&mut self, serve: &mut dyn FnMut() -> vmstate::Result<()>) -> vmstate::Result<()> {
        self.ask_serving(EngineRequest::Resume, serve)
    }

    fn resume(&mut self) -> vmstate::Result<()> {
        if self.rehearsal.take().is_some() {
            return Ok(());
        }
        self.ask(EngineRequest::Resume)
    }

    fn arrived(&mut self) {
        lower_priority();
    }

    fn departed(&mut self) {
        lower_priority();
        if let Some(log) = &self.dirty_log {
            log.abandon();
        }
    }

    fn release(&mut self) -> vmstate::Result<()> {
        let stale = "an image whose guest goes could not be marked as stale";
        let marked = self.copied.mark_stale().map_err(|error| failed(stale, error));
        let released = marked.and_then(|()| {
            self.ownership.release().map_err(|error| failed("the guest's disks could not be given up", error))
        });
        if released.is_err() {
            // The guest resumes here.
            self.copied.unmark().unwrap_or_else(|error| print_message(format_args!("{STILL_MARKED}: {error}")));
        }
        released
    }

    fn claim(&mut self) -> vmstate::Result<Claim> {
        self.ownership.claim().map_err(|error| failed("who has the guest's disks could not be found out", error))
    }

    fn advance(&mut self) -> vmstate::Result<()> {
        let what = "that the guest runs here could not be recorded, so it must not run";
        self.ownership.advance().map_err(|error| failed(what, error))?;
        self.copied.unmark().map_err(|error| failed(STILL_MARKED, error))
    }
}

/// Lowers this thread's priority to a tenth of a processor that both want: the guest runs or is about to run, maybe on this
/// host, and nothing waits for the rest of this thread's work. The priority alone would still let a source, woken by the
/// destination's last message on its processor, use up its turn before the destination runs the guest.
fn lower_priority() {
    // If this is refused, the thread keeps its share.
    let _ = rustix::process::setpriority_process(None, NICE);
    std::thread::yield_now();
}

fn rejected(refusal: Refusal) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Rejected, refusal.0)
}

/// Makes one error of all `differences`, if there are any.
fn refuse(differences: &[String]) -> vmstate::Result<()> {
    match differences {
        [] => Ok(()),
        differences => {
            let message = format!("the guest cannot go on in this machine: {}", differences.join("; "));
            Err(vmstate::Error::new(ErrorKind::Rejected, message))
        }
    }
}
