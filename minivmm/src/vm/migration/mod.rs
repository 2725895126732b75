//! The driver's side of migrations: begins and cancels them, pauses the guest and resumes it; `after.rs` handles their end. The
//! threads that run the engine are in `outgoing.rs` and `incoming.rs`.

mod after;
mod channels;
mod comparison;
mod connector;
mod copied;
mod descriptor;
pub(super) mod ended;
mod engine_machine;
pub(super) mod handover;
pub(super) mod incoming;
pub(super) mod look_up;
mod outgoing;
mod receive;
mod reconnect_listeners;
pub(super) mod replaceable;
pub(super) mod schema;
mod snapshot_disks;
mod state_file;
pub(super) mod status;
mod to_file;
pub(super) mod under_way;
mod warm_up;
mod write_back;

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmstate::migrate::{Control, Parameters, Peer, Phase, SourcePhase};

use self::connector::{Connector, Secure};
use self::copied::{CopiedDisks, NO_MACHINE};
use self::descriptor::Way;
pub use self::ended::Ended;
use self::engine_machine::EngineMachine;
use self::handover::Offer;
use self::outgoing::OutgoingTask;
use self::replaceable::Reconnection;
use self::snapshot_disks::SnapshotDisks;
use self::state_file::NOT_ENCRYPTED;
use self::status::MigrationStatus;
use self::to_file::Writing;
use self::under_way::Outgoing;
pub(super) use self::write_back::WriteBack;
use crate::config::{Address, Tls};
use crate::error::{chain, print_message};
use crate::kvm::state::HypervisorState;
use crate::kvm::throttle::Throttle;
use crate::migration::dirty_log::MachineDirtyLog;
use crate::migration::global::{GlobalState, Timer};
use crate::migration::in_transit::InTransit;
use crate::migration::ram::MachineRam;
use crate::migration::sections::{MachineState, Parts};
use crate::sync::lock;
use crate::vm::assembly::{Outcome, Vm};
use crate::vm::published::{Event, Hold};
use crate::vm::request::{DiskCopies, GuestEvent, ParameterChange, Refusal, Rehearsing, Terms};
use crate::vm::state::RunState;

/// Longest stop of the guest for a rehearsal.
const REHEARSAL: Duration = Duration::from_millis(100);

/// Longest time to stop a guest before a switch-over that waits.
const HOLD: Duration = Duration::from_secs(10);

/// Least bandwidth for device state to another process of this host, in bytes a second.
const LOCAL_BANDWIDTH: NonZeroU64 = NonZeroU64::new(100 << 20).unwrap();

/// How long the driver populates page tables before it checks for requests.
const POPULATING: Duration = Duration::from_millis(10);

/// Longest look-up of the name of an address to listen at; the machine only waits meanwhile.
const LOOK_UP: Duration = Duration::from_secs(2);

fn set_parameters(control: &Control, parameters: Parameters) -> Result<(), Refusal> {
    control.set_parameters(parameters).map_err(|error| Refusal(error.message().to_owned()))
}

impl Vm {
    /// Begins a migration to `address`.
    pub(super) fn migrate(&mut self, address: Address, terms: &Terms) -> Result<(), Outcome> {
        if self.left_stopped.is_some() {
            // A migration writes new records, but those of the last one say whether the guest may run.
            let why = "the guest has been paused here since a migration and may be stale: resume it with cont first";
            return Err(Refusal(why.into()).into());
        }
        if self.machine.has_invariant_tsc() {
            // As in QEMU without an explicit TSC rate (target/i386/kvm/kvm.c, `invtsc_mig_blocker`).
            let why = "the guest's CPUID promises a constant TSC rate, which another host may not have: start a guest that is to be \
                       migrated without invtsc in --cpu";
            return Err(Refusal(why.into()).into());
        }
        if let Some(job) = self.shared.jobs().all().first() {
            let why = format!(
                "the backup job '{}' reads a disk of the guest: wait for its end (BLOCK_JOB_COMPLETED), or cancel it first (block-job-cancel)",
                job.id()
            );
            return Err(Refusal(why).into());
        }
        to_file::check(&address, terms)?;
        let release = terms.release.as_deref().map(schema::read).transpose()?;
        let tls = terms.parameters.of_tls(self.shared.tls())?;
        let in_place = terms.cpr.is_some() || matches!(address, Address::Local(_));
        if terms.cpr.is_some() && !matches!(address, Address::Unix(_) | Address::Tcp(_)) {
            let why = format!(
                "{address}: the main channel of mode cpr-transfer has to be unix:PATH or tcp:HOST:PORT of this host"
            );
            return Err(Refusal(why).into());
        }
        if (in_place || address.stays_on_this_host()) && terms.parameters.of_tls(Tls::default())?.options().is_some() {
            let why = match in_place {
                true => format!("{address} stays on this host and is not encrypted: leave out tls-creds"),
                false => NOT_ENCRYPTED.into(),
            };
            return Err(Refusal(why).into());
        }
        let secure = if in_place { None } else { Secure::new(&tls, &address).map_err(Refusal)? };
        let control = Control::default();
        let parameters = terms.parameters.of(self.shared.parameters())?;
        let mut theirs = parameters;
        if in_place {
            // Without pages the bandwidth of the socket cannot be measured.
            theirs.avail_switchover_bandwidth.get_or_insert(LOCAL_BANDWIDTH);
        }
        set_parameters(&control, theirs)?;
        // An older release reads a stream only.
        let has_places = matches!(address, Address::File { .. }) && release.is_none();
        let threads = if has_places { to_file::threads(&parameters)? } else { 0 };
        let single = in_place || matches!(address, Address::File { .. } | Address::Descriptor { .. });
        if single && !has_places && parameters.page_channels().is_some() {
            let why =
                format!("{address} takes one stream, and multifd makes several: switch the capability multifd off");
            return Err(Refusal(why).into());
        }
        let copied = CopiedDisks::selected(&self.backends.images, &terms.copies).map_err(Refusal)?;
        match terms.keeps_running {
            true => to_file::check_resources(&self.backends.ownership, &copied)?,
            false if terms.copies != DiskCopies::None => copied.check(&address).map_err(Refusal)?,
            false => {}
        }
        let way = Way::to(&address, &self.backends.images, threads > 0 && parameters.direct_io).map_err(Refusal)?;
        // An older release opens console and networks itself.
        let continues = release.as_ref().is_none_or(|release| release.section(InTransit::SECTION).is_some());
        let offer = in_place.then(|| Offer::new(&self.ram, self.segment.as_ref(), &self.backends, continues));
        let offer = offer.transpose().map_err(Refusal)?;
        let hands_over = offer.is_some() && continues;
        let mut snapshot = None;
        if let Way::File(file) = &way {
            if secure.is_some() {
                return Err(Refusal(NOT_ENCRYPTED.into()).into());
            }
            if terms.keeps_running {
                snapshot = Some(SnapshotDisks::create(&file.path, &copied).map_err(Refusal)?);
            } else if terms.copies != DiskCopies::None {
                return Err(Refusal(format!("{address}: {NO_MACHINE}")).into());
            }
        }
        // The disks of a snapshot are in no section.
        let copied = if snapshot.is_some() { CopiedDisks::default() } else { copied };
        let setup = Phase::Source(SourcePhase::Setup);
        self.shared.begin_migration(setup, &control);
        self.shared.set_disk_counts(snapshot.as_ref().map_or_else(|| copied.counts(), SnapshotDisks::counts));
        *lock(&self.state) =
            MachineState { preflight: self.preflight(), ..MachineState::new(self.machine.vcpus.len()) };
        let parts = Parts { disks: copied.sections(), ..self.parts() }.going_to(release.as_ref());
        // An older release may not have QEMU's firmware blocks, and shows the guest its RAM there.
        let mut ram = MachineRam::leaving(self.ram.clone(), &self.firmware, release.is_none() && offer.is_none());
        if in_place {
            ram = if terms.cpr.is_some() { ram.transferred() } else { ram.shared() };
        }
        let log = MachineDirtyLog::new(Arc::clone(&self.machine.kvm), ram.segment());
        let throttle = Arc::new(Throttle::new(&self.machine.kvm, &self.machine.vcpus));
        let mut machine = EngineMachine::new(self.handle.clone(), control.clone(), &self.backends, &parts.tickets)
            .sending(&throttle, &log)
            .copying(&copied)
            .in_place(in_place && !self.backends.nets.is_empty());
        let (handle, ours) = (self.handle.clone(), control.clone());
        let connects = !matches!(way, Way::File(_));
        let (sender, reconnections) = channel();
        let begun = match way {
            Way::File(file) => {
                let shared = Arc::clone(&self.shared);
                let (control, log) = (control.clone(), log.clone());
                if let Some(disks) = &snapshot {
                    machine = machine.keeping_resources(disks.ownership());
                }
                let reader = if terms.to_qemu { Peer::Qemu } else { Peer::Vmstate };
                let writing = Writing {
                    file,
                    threads,
                    disks: snapshot,
                    reader,
                    release,
                    control,
                    parts,
                    ram,
                    log,
                    machine,
                    shared,
                };
                ended::spawn(handle, setup, ours, || (writing.run(), None))
            }
            Way::Connect | Way::Connected(_) => {
                let connected = if let Way::Connected(socket) = way { Some(socket) } else { None };
                let (look_up, shared) = (self.look_up.clone(), Arc::clone(&self.shared));
                let task = OutgoingTask {
                    connector: Connector {
                        address,
                        offer,
                        cpr: terms.cpr.clone(),
                        connected,
                        secure,
                        look_up,
                        control: control.clone(),
                    },
                    reconnections,
                    shared,
                    release,
                    control: control.clone(),
                    machine,
                    parts,
                    ram,
                    log: log.clone(),
                    channels: parameters.page_channels(),
                };
                ended::spawn(handle, setup, ours, || (task.run(), None))
            }
        };
        match begun {
            Ok(thread) => {
                self.shared.set_parameters(parameters);
                self.shared.set_tls(tls);
                let (before, announced_postcopy) = (self.shared.run_state(), parameters.postcopy_ram && connects);
                let reconnections = Some(sender);
                self.outgoing = Some(Outgoing {
                    control,
                    thread,
                    before,
                    hands_over,
                    log,
                    announced_postcopy,
                    reconnections,
                    throttle,
                });
                Ok(())
            }
            Err(error) => {
                let why = format!("cannot spawn a thread: {error}");
                self.publish_end(Phase::Source(SourcePhase::Failed), Some(why.clone()));
                Err(Refusal(why).into())
            }
        }
    }

    /// Cancels the outgoing migration.
    pub(super) fn cancel_migration(&mut self) -> Result<(), Refusal> {
        let Some(outgoing) = &mut self.outgoing else { return Ok(()) };
        if self.shared.migration().status() == MigrationStatus::PostcopyPaused {
            // The guest is not here any more, and nobody reconnects.
            outgoing.reconnections = None;
            return Ok(());
        }
        if !outgoing.control.cancel() {
            // The guest of a snapshot goes on before its file is complete.
            let is_saved = self.shared.run_state() != RunState::FinishMigrate;
            let what = if is_saved { "the file is complete" } else { "the guest is being handed over already" };
            return Err(Refusal(format!("{what}; it cannot be cancelled any more")));
        }
        self.shared.update_migration(|info| info.cancelled = true);
        Ok(())
    }

    /// Changes parameters, also of a migration under way: all that are named, or none.
    pub(super) fn set_migration_parameters(&self, change: &ParameterChange) -> Result<(), Refusal> {
        let parameters = change.of(self.shared.parameters())?;
        let tls = change.of_tls(self.shared.tls())?;
        if let Some(outgoing) = &self.outgoing {
            set_parameters(&outgoing.control, parameters)?;
        }
        self.shared.set_parameters(parameters);
        self.shared.set_tls(tls);
        Ok(())
    }

    /// Source: stops the guest before a switch-over that waits for a client.
    pub(super) fn hold(&mut self) -> Result<(), Outcome> {
        self.switch_over(HOLD)?;
        self.shared.update_migration(|info| info.hold = Hold::Waits);
        Ok(())
    }

    /// Continues a switch-over that waits.
    pub(super) fn continue_migration(&self) -> Result<(), Refusal> {
        match self.shared.migration().status() {
            MigrationStatus::PreSwitchover => {
                self.shared.update_migration(|info| info.hold = Hold::Over);
                Ok(())
            }
            status => Err(Refusal(format!("Migration not in expected state: {}", status.as_str()))),
        }
    }

    /// Source: switches to post-copy, in which the guest runs at the destination before all of its memory is there.
    pub(super) fn start_postcopy(&self) -> Result<(), Refusal> {
        let Some(outgoing) = &self.outgoing else { return Ok(()) };
        if !outgoing.announced_postcopy {
            // QEMU's message, with an addition.
            return Err(Refusal(
                "Enable postcopy with migrate_set_capability before the start of migration: postcopy-ram was off when this one began".into(),
            ));
        }
        outgoing.control.start_postcopy();
        Ok(())
    }

    /// Source: reconnects to `address`, where the guest waits for the rest of its memory.
    pub(super) fn resume_migration(&self, address: Address) -> Result<(), Refusal> {
        let reconnections = self.outgoing.as_ref().and_then(|outgoing| outgoing.reconnections.as_ref());
        let paused = self.shared.migration().status() == MigrationStatus::PostcopyPaused;
        let Some(reconnections) = reconnections.filter(|_| paused) else {
            // QEMU's message (`migrate_prepare`, migration/migration.c).
            return Err(Refusal("Cannot resume if there is no paused migration".into()));
        };
        let secure = Secure::new(&self.shared.tls(), &address).map_err(Refusal)?;
        let no_connection =
            || Refusal(format!("{address}: post-copy continues only over a connection: give an address"));
        let connected = match &address {
            Address::File { .. } | Address::Local(_) => return Err(no_connection()),
            _ => match Way::to(&address, &self.backends.images, false).map_err(Refusal)? {
                Way::Connect => None,
                Way::Connected(socket) => Some(socket),
                Way::File(_) => return Err(no_connection()),
            },
        };
        let over = |_| Refusal("the migration has ended".into());
        reconnections.send(Reconnection { address, secure, connected }).map_err(over)
    }

    /// Source: stops the guest `within` this time, if it runs, and reads the state in KVM.
    pub(super) fn switch_over(&mut self, within: Duration) -> Result<(), Outcome> {
        let before = match (self.shared.run_state(), &self.outgoing) {
            (RunState::FinishMigrate, Some(outgoing)) => {
                let (hypervisor, timer, global) = self.read_state(outgoing.before)?;
                let mut state = lock(&self.state);
                (state.hypervisor, state.timer, state.global) = (hypervisor, timer, global);
                drop(state);
                self.hold_in_transit();
                return Ok(());
            }
            (before, _) => before,
        };
        self.stop_and_read(before, within)?;
        if let Err(error) = self.copy_segment() {
            if before == RunState::Running {
                self.start();
            }
            return Err(Refusal(format!("the guest's memory could not be copied for a QEMU: {error}")).into());
        }
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.before = before;
        }
        self.shared.set_run_state(RunState::FinishMigrate);
        self.hold_in_transit();
        Ok(())
    }

    /// Source: copies the part of the stopped guest's memory that a QEMU has in a block of its own, if memory is handed over.
    fn copy_segment(&self) -> io::Result<()> {
        let hands_over = self.outgoing.as_ref().is_some_and(|outgoing| outgoing.hands_over);
        match &self.segment {
            Some(segment) if hands_over => segment.update(&self.ram),
            _ => Ok(()),
        }
    }

    /// Source: collects the bytes in transit, if their descriptors are handed over. The run state lets no further input in.
    fn hold_in_transit(&self) {
        if self.outgoing.as_ref().is_some_and(|outgoing| outgoing.hands_over) {
            lock(&self.state).in_transit = self.machine.devices.hold_in_transit();
        }
    }

    /// Source: stops the guest as a switch-over does, and resumes it once the migration thread has measured what it needs. The
    /// run state is unchanged, so clients do not notice.
    pub(super) fn rehearse(&mut self, with: Rehearsing) -> Result<(), Outcome> {
        let (begun, before) = (Instant::now(), self.shared.run_state());
        self.stop_and_read(before, REHEARSAL)?;
        if with.stopped.send(begun.elapsed()).is_ok() {
            // Always ends with an error: nothing is sent, the other end is dropped.
            let _ = with.over.recv_timeout(REHEARSAL.saturating_sub(begun.elapsed()));
        }
        if before == RunState::Running {
            self.start();
        }
        Ok(())
    }

    /// Stops the guest if it runs, `within` this time, and reads its state from KVM. After a refusal it runs on.
    fn stop_and_read(&mut self, before: RunState, within: Duration) -> Result<(), Outcome> {
        let runs = before == RunState::Running;
        if runs {
            self.pause_all(within)?;
        }
        let read = self.settle_guest().and_then(|()| Ok(self.read_state(before)?));
        if runs && matches!(read, Err(Outcome::Refused(_))) {
            self.start();
        }
        let (hypervisor, timer, global) = read?;
        let mut state = lock(&self.state);
        (state.hypervisor, state.timer, state.global) = (hypervisor, timer, global);
        Ok(())
    }

    /// Carries out earlier actions of the stopped guest on its machine, since their effect belongs to the state that is read
    /// next.
    fn settle_guest(&mut self) -> Result<(), Outcome> {
        match self.machine.events().first() {
            None => Ok(()),
            Some(GuestEvent::Reset) => {
                self.remake()?;
                self.shared.notify(Event::Reset { by_guest: true });
                Ok(())
            }
            Some(GuestEvent::PoweredOff | GuestEvent::Failed(_)) => {
                Err(Refusal("the guest powered off or failed just before it was to be handed over".into()).into())
            }
        }
    }

    /// Reads the state in KVM of the stopped machine; it will resume in state `before`.
    fn read_state(&self, before: RunState) -> Result<(HypervisorState, Timer, GlobalState), Refusal> {
        let hypervisor = self.machine.read_state().map_err(|error| Refusal(chain(&error)))?;
        let tsc = hypervisor.vcpus.first().map_or(0, |vcpu| vcpu.cpu.tsc);
        let timer = Timer::at(hypervisor.clock.clock, tsc);
        Ok((hypervisor, timer, GlobalState::new(before.as_str())))
    }

    /// Destination: populates second-level page tables for pages that have arrived.
    pub(super) fn populate(&mut self) {
        self.machine.populate(Instant::now() + POPULATING);
    }

    /// Destination: writes the state in KVM. The guest has not run.
    pub(super) fn write_state(&self, may_be_copy: bool) -> Result<(), Refusal> {
        let mut state = lock(&self.state);
        // The clocks of a guest in a file do not advance, as in QEMU: only two wall-clock readings could tell how long it was
        // there.
        let travels = self.incoming.as_ref().is_some_and(|incoming| !incoming.from_file);
        let preflight = state.preflight.arrived().map(|(_, preflight)| preflight).filter(|_| travels);
        let memory = self.ram.guest();
        state.hypervisor.complete_reference(|address, into| memory.read_slice(into, GuestAddress(address)).is_ok());
        let elapsed = self.machine.write_state(&state.hypervisor, preflight);
        if let Some(warning) = elapsed.map_err(|error| Refusal(chain(&error)))?.warning() {
            print_message(warning);
        }
        if may_be_copy {
            self.machine.devices.renew_generation(memory)?;
        }
        if let Some(transferred) = &self.transferred {
            let read = self.firmware.read_transferred(&self.ram, |name| transferred.get(name));
            read.map_err(|error| Refusal(format!("firmware of the source: {error}")))?;
        }
        self.machine.devices.loaded();
        if state.in_transit.present {
            self.machine.devices.take_over(std::mem::take(&mut state.in_transit));
        }
        Ok(())
    }

    /// Source: the guest resumes here as before. Destination: it resumes in its state at the source, or stays stopped if a stop
    /// was requested before.
    pub(super) fn go_on(&mut self) {
        let runs = match (&self.outgoing, &self.incoming) {
            (Some(outgoing), _) => outgoing.before == RunState::Running,
            (None, _) if self.arrives_stopped => false,
            (None, _) => lock(&self.state).global.was_running(),
        };
        self.backends.images.iter().for_each(|image| image.bitmaps().arrived());
        self.machine.devices.announce_arrival(self.shared.announcing());
        if runs {
            self.start();
        } else {
            lock(&self.machine.devices.serial).release();
            self.shared.set_run_state(RunState::Paused);
        }
    }

    fn publish_end(&self, phase: Phase, error: Option<String>) {
        self.shared.update_migration(|info| (info.phase, info.error) = (phase, error));
    }
}

#[cfg(test)]
mod tests;
