//! One case of the matrix of a snapshot, with the guest's real process: the phase, the fault, and the conditions after it. The
//! thread that writes the file is held in the phase, while all other threads of the process run.

use std::fs;
use std::path::{Path, PathBuf};

use nix::libc::{SYS_fdatasync, SYS_fsync, SYS_pwrite64, SYS_pwritev, SYS_renameat2, SYS_write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempPath;

use super::case::{KEPT, fill, join, join_quit, truncate};
use super::cell::{Cell, Fault, Guest, Saved, SideState};
use super::outcome::{CommandResult, await_state, check_answer, check_passes};
use super::setup::Setup;
use super::side::Side;
use super::snapshot::Step;
use super::third_party::ThirdParty;
use super::{Result, until};
use crate::held::Held;

/// Beginning of the name of each file of the snapshot.
const NAME: &str = "state";

/// A guest and its snapshot.
struct Snapshot<'a> {
    setup: &'a Setup,
    source: Side,
    /// Folder of the snapshot.
    folder: &'a Path,
}

/// Causes the fault for a guest whose snapshot is written to `folder`, and checks the outcome.
///
/// # Errors
/// The condition that failed, and the state of the guest's process.
pub fn run(setup: &Setup, folder: &Path, fault: Fault, step: Step, cell: &Cell) -> Result<()> {
    let Cell::Ends { guest, source, destination: SideState::File(saved), answer } = *cell else { return Ok(()) };
    let mut snapshot = Snapshot { setup, source: Side::boot(setup)?, folder };
    let Some(held) = snapshot.reach(step)? else { return Ok(()) };
    let early = snapshot.files().into_iter().find(|name| step != Step::Name && !name.ends_with(".partial"));
    if let Some(name) = early {
        return Err(format!("{name} has its name before it is complete"));
    }
    let injected = snapshot.inject(fault, held);
    let checked = injected.and_then(|(result, filler)| {
        await_state("the source", &mut snapshot.source, source)?;
        drop(filler);
        check_answer(answer, result)?;
        snapshot.check_guest(guest)?;
        snapshot.check_file(saved)?;
        // Whatever prevented the snapshot prevents none later.
        if saved == Saved::Absent && guest == Guest::AtSource && fault != Fault::ImageTruncated {
            snapshot.ask()?;
            await_state("the source", &mut snapshot.source, SideState::Answers("running", "completed", ""))?;
            snapshot.check_file(Saved::Whole)?;
        }
        snapshot.check_guest(if guest == Guest::PausedAtSource { Guest::AtSource } else { guest })
    });
    checked.map_err(|why| {
        let source = &mut snapshot.source;
        let state = if source.exit_code().is_none() { Some(source.state()) } else { None };
        format!("{why}\n  source: {state:?}, {:?}; files: {:?}", source.vmm.errors(), snapshot.files())
    })
}

impl Snapshot<'_> {
    fn state(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// The copy of the guest's disk, if it has one.
    fn image(&self) -> Option<PathBuf> {
        self.setup.config.disk.as_ref().map(|_| self.folder.join(format!("{NAME}.virtio0")))
    }

    /// Names of the snapshot's files, in order.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(NAME)).collect();
        names.sort();
        names
    }

    /// Asks for the snapshot.
    fn ask(&mut self) -> Result<()> {
        let arguments = self.arguments();
        self.source.execute("migrate", arguments).map(drop)
    }

    fn arguments(&self) -> Value {
        let uri = format!("file:{}", self.state().display());
        json!({ "uri": uri, "keep-running": true, "copy-disk": self.image().is_some() })
    }

    /// Begins the snapshot, and holds its thread in the phase; `None` if this is not possible here.
    fn reach(&mut self, step: Step) -> Result<Option<Held>> {
        let driver = self.source.thread("driver").ok_or("the thread that starts migrations is not found")?;
        let mut begun = None;
        let held = Held::next_of(driver, || begun = Some(self.source.ask("migrate", self.arguments())));
        let (Some(held), Some(begun)) = (held, begun) else { return Ok(None) };
        begun.join().map_err(|_| "the thread that executed a command panicked")??;
        held.go_to(&[SYS_pwrite64, SYS_pwritev]);
        if step >= Step::Pause {
            while self.source.state()?.0 != "finish-migrate" {
                held.go_to(&[SYS_write, SYS_pwrite64, SYS_pwritev]);
            }
        }
        if step >= Step::Sync {
            held.go_to(&[SYS_fsync, SYS_fdatasync]);
        }
        if step == Step::Name {
            held.go_to(&[SYS_renameat2]);
            while self.image().is_some_and(|image| !image.exists()) {
                held.go_to(&[SYS_renameat2]);
            }
        }
        Ok(Some(held))
    }

    /// Causes the fault, and lets the thread continue. Returns the answer to the fault's command, and the file that takes all
    /// room.
    fn inject(&mut self, fault: Fault, held: Held) -> Result<(CommandResult, Option<TempPath>)> {
        let command = |name| join(self.source.ask(name, Value::Null)).map(|result| (result, None));
        match fault {
            Fault::SourceKilled => {
                let killed = kill(Pid::from_raw(self.source.process as i32), Signal::SIGKILL);
                killed.map_err(|errno| format!("kill: {errno}"))?;
                held.await_end();
                self.source.kill();
                Ok((None, None))
            }
            Fault::NoRoomForFile => Ok((None, Some(fill(&self.folder.join("filler"))?))),
            Fault::ImageTruncated => self.setup.config.disk.as_deref().map_or(Ok(()), truncate).map(|()| (None, None)),
            Fault::Cancel => {
                // It is answered once the thread has ended.
                let answer = self.source.ask("migrate_cancel", Value::Null);
                until("the snapshot is cancelled, or that is refused", || {
                    Ok(self.source.state()?.1 == "cancelling" || answer.is_finished())
                })?;
                drop(held);
                join(answer).map(|result| (result, None))
            }
            Fault::Stop => command("stop"),
            Fault::Reset => command("system_reset"),
            Fault::Quit => {
                // The process does not wait long for a thread whose disk does not answer.
                let answer = self.source.ask("quit", Value::Null);
                held.await_end();
                join_quit(answer).map(|result| (result, None))
            }
            other => Err(format!("{other:?} belongs to another table")),
        }
    }

    fn check_guest(&mut self, guest: Guest) -> Result<()> {
        let (setup, source) = (self.setup, &mut self.source);
        let image = setup.config.disk.as_deref();
        match guest {
            Guest::AtSource => goes_on(source, image)?,
            Guest::AnewAtSource => {
                let boots = |source: &Side| source.vmm.console().matches(setup.test_guest.banner).count();
                until("the guest starts again", || Ok(boots(source) == 2))?;
                goes_on(source, image)?;
            }
            Guest::PausedAtSource => {
                let before = source.vmm.console();
                std::thread::sleep(setup.test_guest.silence);
                if source.vmm.console() != before {
                    return Err("the guest runs, though it was stopped".into());
                }
                source.execute("cont", Value::Null)?;
                goes_on(source, image)?;
            }
            // Another process may start the guest on its disk.
            Guest::DiedWithItsProcess => drop(image.map(ThirdParty::take).transpose()?),
            other => return Err(format!("{other:?} belongs to another table")),
        }
        check_passes(&setup.test_guest, &source.vmm.console(), guest == Guest::DiedWithItsProcess)
    }

    fn check_file(&self, saved: Saved) -> Result<()> {
        let (files, image) = (self.files(), self.image());
        let whole: Vec<_> = [Some(self.state()), image.clone()].into_iter().flatten().collect();
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| files.iter().any(|file| name == &**file));
        let expected = match saved {
            Saved::Whole | Saved::WholePaused => files.len() == whole.len() && whole.iter().all(named),
            Saved::Absent => files.is_empty(),
            Saved::Remains => !named(&self.state()) && !files.is_empty(),
        };
        if !expected {
            return Err(format!("the snapshot shall be {}, but its files are {files:?}", saved.meaning()));
        }
        if let Some(image) = image.filter(|image| image.exists()) {
            self.check_copy(&image)?;
        }
        match saved {
            Saved::Whole => self.check_clone("running"),
            Saved::WholePaused => self.check_clone("paused"),
            Saved::Absent | Saved::Remains => Ok(()),
        }
    }

    /// Checks that the copy has all of the disk that the guest does not change.
    fn check_copy(&self, image: &Path) -> Result<()> {
        let Some(disk) = &self.setup.config.disk else { return Ok(()) };
        let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let (disk, copy) = (read(disk)?, read(image)?);
        let kept = KEPT as usize;
        let same = disk.len() == copy.len() && disk.get(kept..) == copy.get(kept..);
        if same { Ok(()) } else { Err(format!("{} is no copy of the guest's disk", image.display())) }
    }

    /// Starts a guest from the file, which is in this run state, and lets it verify its memory and its disk.
    fn check_clone(&self, run_state: &str) -> Result<()> {
        let image = self.image();
        let mut clone = Side::restore(self.setup, &self.state(), image.as_deref())?;
        let running = SideState::Answers("running", "completed", "");
        if run_state == "paused" {
            await_state("the clone", &mut clone, SideState::Answers("paused", "completed", ""))?;
            clone.execute("cont", Value::Null)?;
        }
        await_state("the clone", &mut clone, running)?;
        goes_on(&mut clone, image.as_deref())?;
        check_passes(&self.setup.test_guest, &clone.vmm.console(), false)
    }
}

/// Waits for three more passes of the guest, in which it verifies its work, on a disk that its process has locked.
fn goes_on(side: &mut Side, disk: Option<&Path>) -> Result<()> {
    let before = side.last_pass();
    until("the guest goes on", || Ok(side.last_pass() >= before + 3))?;
    match disk {
        Some(disk) if !side.holds(disk) => Err("the side that runs the guest does not hold the image's lock".into()),
        _ => Ok(()),
    }
}
