//! `minivmm migrate`: asks a running machine to migrate, shows progress, and waits for the end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use crate::cli::EXIT_UNKNOWN;
use crate::cli::machine::MachineArgs;
use crate::cli::parameters::{PolicyArgs, SendingArgs};
use crate::cli::progress::{self, Progress};
use crate::cli::report::Report;
use crate::cli::tls::TlsArgs;
use crate::cli::units::{milliseconds, size};
use crate::cli::update::UpdateArgs;
use crate::command;
use crate::config::Address;
use crate::control::{Client, ClientError};
use crate::error::say;
use crate::passed;
use crate::sandbox::{self, Kind};

/// Time between two looks at the figures: often enough to follow, rare enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time between two looks at the figures for a report, which draws them.
const SAMPLING: Duration = Duration::from_millis(50);

const AFTER_HELP: &str = "\
Progress goes to standard error: one line that is rewritten on a terminal, elsewhere a line of key=value words for each new phase and round.
The first Ctrl-C cancels the migration and waits until the guest runs on; the second ends this command at once, and the machine goes on
cancelling.

Exit codes:
  0  the guest runs at the destination, or is in the file
  1  the migration failed or was cancelled, or the machine refused to begin: the guest is where it was
  2  nothing was begun: the command line is wrong, or the machine cannot be reached
  3  the destination did not confirm, and holds the guest or has run it: it stands at the source; with --postcopy also: the guest ran at the
     destination, and the rest of its memory was given up
  4  the destination did not confirm, and nothing proves whether it runs the guest: it stands at the source
  5  unknown: the machine went away before it said, or a second Ctrl-C: look at both sides

Examples:
  minivmm migrate --control unix:/run/vm/qmp unix:/run/vm/move
  minivmm migrate --control unix:/run/vm/qmp --downtime-limit 100ms --max-bandwidth 1G tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp --local
  minivmm migrate --control unix:/run/vm/qmp --postcopy tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp --resume tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp --report move.html tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp 'exec:ssh b.example socat - UNIX-CONNECT:/run/vm/move'
  minivmm migrate --control unix:/run/vm/qmp --channels 4 --compress zstd:1 --auto-converge tcp:10.0.0.2:4444";

/// By this name the machine knows the descriptor that it is passed for a migration.
const PASSED: &str = "migrate";

/// Flags of `minivmm migrate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct MigrateArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Where the machine shall go: unix:PATH, tcp:HOST:PORT or vsock:CID:PORT; to whoever is at the other end of COMMAND, which this
    /// process starts in a shell and which has to carry bytes both ways: exec:COMMAND; over a connected socket that this process was
    /// passed: fd:N. Or, with its guest stopped, into the new file PATH: file:PATH[,offset=N]; or into a pipe or file that was
    /// passed: fd:N
    #[arg(value_name = "ADDRESS", value_parser = str::parse::<Address>, required_unless_present = "local")]
    pub to: Option<Address>,
    /// Hand the guest over at once, and send the rest of its memory while it runs at the destination. A connection that breaks meanwhile is
    /// made again
    #[arg(long, conflicts_with_all = ["local", "to_qemu"])]
    pub postcopy: bool,
    /// The file is for a QEMU: it has only what one reads
    #[arg(long)]
    pub to_qemu: bool,
    /// Send the content of the writable disks along, to hosts that do not share storage: the destination makes an image for each of them
    /// (minivmm run --disk FILE,create=SIZE)
    #[arg(long, conflicts_with_all = ["local", "to_qemu"])]
    pub copy_disk: bool,
    /// Go on with a migration with --postcopy whose connection broke, and whose command does not run any more: the guest's memory goes on to
    /// this address. The command that began the migration does that by itself
    #[arg(long, conflicts_with_all = ["local", "to_qemu", "copy_disk", "postcopy", "target_schema"])]
    pub resume: bool,
    /// A new process on this host.
    #[command(flatten)]
    pub update: UpdateArgs,
    /// A snapshot: the guest goes on here once all of it is in the file
    #[arg(skip)]
    pub keep_running: bool,
    /// What the destination's minivmm, of an older release, wrote with dump-schema: the guest is sent as that release sends it
    #[arg(long, value_name = "FILE")]
    pub target_schema: Option<PathBuf>,
    /// Write what the migration was like into an HTML page, with its numbers as JSON; what was in the file is replaced
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// TLS.
    #[command(flatten, next_help_heading = "How it is encrypted, in this migration and later ones")]
    pub tls: TlsArgs,
    /// How pages are sent.
    #[command(flatten, next_help_heading = "How pages are sent, in this migration and later ones")]
    pub sending: SendingArgs,
    /// What decides.
    #[command(
        flatten,
        next_help_heading = "When to switch over, throttle and give up, in this migration and later ones"
    )]
    pub policy: PolicyArgs,
}

/// How a migration that began came to its end. All but the first carry a sentence that says why, and where the guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the destination.
    Completed,
    /// Failed or cancelled: the guest is where it was.
    Stayed(String),
    /// The destination did not confirm, but holds the guest's disks, or somebody has run it: it stands at the source.
    Unacknowledged(String),
    /// The destination did not confirm, and nothing proves whether it runs the guest: it stands at the source.
    Undecided(String),
    /// The machine went away before it said how the migration ended.
    Unknown(String),
}

impl Outcome {
    fn sentence(&self) -> &str {
        match self {
            Self::Completed => "The guest runs at the destination.",
            Self::Stayed(why) | Self::Unacknowledged(why) | Self::Undecided(why) | Self::Unknown(why) => why,
        }
    }
}

impl MigrateArgs {
    /// Migrates, and shows progress on standard error. Ctrl-C cancels; a second one ends the process.
    ///
    /// # Errors
    /// The machine cannot be reached, or refuses to begin.
    pub fn carry_out(&self) -> Result<Outcome, ClientError> {
        match &self.to {
            Some(to) => self.migrate(to),
            None => self.update.carry_out(&self.machine, |to| self.migrate(to)),
        }
    }

    fn migrate(&self, to: &Address) -> Result<Outcome, ClientError> {
        let passed = to_be_passed(to)?;
        let interrupts = Interrupts::new()?;
        let report = self.report.as_deref().map(Report::create).transpose()?;
        let mut client = self.machine.connect()?;
        let mut arguments = json!({"uri": to.to_string()});
        if let Some(passed) = passed {
            client.pass(PASSED, &passed)?;
            arguments["uri"] = format!("fd:{PASSED}").into();
        }
        if self.to_qemu {
            arguments["to-qemu"] = true.into();
        }
        if self.copy_disk {
            arguments["copy-disk"] = true.into();
        }
        if self.keep_running {
            arguments["keep-running"] = true.into();
        }
        if let Some(file) = &self.target_schema {
            // The machine reads it, and may have been started in another folder.
            arguments["target-schema"] = std::path::absolute(file)?.display().to_string().into();
        }
        if self.resume {
            arguments["resume"] = true.into();
            client.execute("migrate", arguments)?;
            return Ok(self.await_end(to, &mut client, &interrupts, report));
        }
        let changes = self.tls.changes()?.chain(self.sending.changes()).chain(self.policy.changes());
        let postcopy = self.postcopy.then(|| ("postcopy-ram", true.into()));
        client.migrate(arguments, changes.chain(postcopy))?;
        if self.postcopy {
            match client.execute("migrate-start-postcopy", json!({})) {
                // One that has ended already tells its end.
                Ok(_) | Err(ClientError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.await_end(to, &mut client, &interrupts, report))
    }

    /// Shows progress until the migration has ended.
    fn await_end(
        &self,
        to: &Address,
        client: &mut Client,
        interrupts: &Interrupts,
        mut report: Option<Report>,
    ) -> Outcome {
        let end = follow(client, interrupts, report.as_mut(), &mut Again::new(to));
        let figures = match end {
            // The machine may end as soon as the guest has left: its last event tells.
            Err(_) if client.migration_status() == Some("completed") => Ok(json!({"status": "completed"})),
            end => end,
        };
        let outcome = self.outcome(to, figures.as_ref(), client);
        if let Some(report) = report {
            let to = to.to_string();
            let written = report.write((&to, outcome.sentence()), figures.unwrap_or_default(), client);
            // The migration has ended as it has.
            written.unwrap_or_else(say);
        }
        outcome
    }

    /// How a migration with these last figures ended.
    fn outcome(&self, to: &Address, figures: Result<&Value, &ClientError>, client: &mut Client) -> Outcome {
        let figures = match figures {
            Ok(figures) => figures,
            Err(error) => {
                return Outcome::Unknown(format!(
                    "{error}, and how the migration ended is unknown; look at {to} whether the guest runs there"
                ));
            }
        };
        let why = |otherwise: &str| figures["error-desc"].as_str().unwrap_or(otherwise).to_owned();
        match figures["status"].as_str() {
            Some("completed") => {
                let what = match to {
                    Address::File { path, .. } if self.keep_running => {
                        format!("the guest runs on, its state of one moment is in {}", path.display())
                    }
                    Address::File { path, .. } => format!("the guest is stopped, its state is in {}", path.display()),
                    to => format!("migrated to {to}"),
                };
                progress::print(&(what + &summary(figures)));
                Outcome::Completed
            }
            Some("unacknowledged") => Outcome::Unacknowledged(why("the destination did not confirm")),
            Some("undecided") => Outcome::Undecided(why("the destination did not confirm")),
            // In post-copy, after the destination ran the guest.
            Some("failed") if state(client).is_ok_and(|state| state == "postmigrate") => {
                Outcome::Unacknowledged(failure(figures))
            }
            _ => {
                let mut sentence = format!("{}; {}", failure(figures), whereabouts(client));
                if let (Address::Exec(_), None | Some(0)) = (to, figures["ram"]["transferred"].as_u64()) {
                    sentence += ONE_WAY;
                }
                Outcome::Stayed(sentence)
            }
        }
    }
}

/// What the machine cannot reach by itself, and is passed: it starts no programs, and has other descriptors than this process.
fn to_be_passed(to: &Address) -> Result<Option<OwnedFd>, ClientError> {
    let refused = |why| ClientError::Address { address: to.to_string(), why };
    match to {
        // It ends with its end of the connection, and is not waited for.
        Address::Exec(line) => match command::run(line) {
            Ok((_child, socket)) => Ok(Some(socket)),
            Err(error) => Err(refused(error.to_string())),
        },
        Address::Descriptor { name, .. } => {
            passed::take(&[("ADDRESS", name)]).map_err(refused)?;
            passed::descriptor(name).map(Some).map_err(|error| refused(error.to_string()))
        }
        Address::Unix(_) | Address::Local(_) | Address::Tcp(_) | Address::Vsock { .. } | Address::File { .. } => {
            Ok(None)
        }
    }
}

/// Added to the failure of `exec:COMMAND` whose command answered nothing, as the usual `exec:gzip >FILE` of QEMU.
const ONE_WAY: &str = ". A command has to carry bytes both ways, for the destination's answers decide. Into a command that only reads, the guest goes \
     stopped: minivmm migrate fd:3 3> >(COMMAND)";

/// Between two attempts to connect again.
const AGAIN: Duration = Duration::from_secs(1);

/// Connects a migration in post-copy again whose connection broke.
struct Again {
    /// Where to; none if this process cannot make such a connection twice.
    uri: Option<String>,
    /// When that was last tried, since it broke.
    tried: Option<Instant>,
}

impl Again {
    fn new(to: &Address) -> Self {
        let is_address = matches!(to, Address::Unix(_) | Address::Tcp(_) | Address::Vsock { .. });
        Self { uri: is_address.then(|| to.to_string()), tried: None }
    }

    /// Looks whether it is broken.
    fn look(&mut self, client: &mut Client, figures: &Value) -> Result<(), ClientError> {
        if figures["status"] != "postcopy-paused" {
            self.tried = None;
            return Ok(());
        }
        if self.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
            return Ok(());
        }
        if self.tried.replace(Instant::now()).is_none() {
            let why = figures["error-desc"].as_str().unwrap_or("the connection broke");
            let what = match self.uri {
                Some(_) => {
                    "this command connects again until that succeeds; Ctrl-C gives the guest's memory up, and so the guest"
                }
                None => {
                    "minivmm migrate --resume ADDRESS connects again; Ctrl-C gives the guest's memory up, and so the guest"
                }
            };
            say(format_args!("{why} ({what})"));
        }
        let Some(uri) = &self.uri else { return Ok(()) };
        match client.execute("migrate", json!({"uri": uri, "resume": true})) {
            // It is connected by now, or has ended.
            Ok(_) | Err(ClientError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Until the migration has ended; its last figures.
fn follow(
    client: &mut Client,
    interrupts: &Interrupts,
    mut report: Option<&mut Report>,
    again: &mut Again,
) -> Result<Value, ClientError> {
    let mut shown = Progress::new();
    let interval = if report.is_some() { SAMPLING } else { INTERVAL };
    loop {
        if interrupts.pending() {
            shown.cancelling();
            interrupts.asking();
            match client.execute("migrate_cancel", json!({})) {
                // Too late: the end tells what became of it.
                Ok(_) | Err(ClientError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let figures = client.execute("query-migrate", json!({}))?;
        if let Some("completed" | "failed" | "cancelled" | "unacknowledged" | "undecided") = figures["status"].as_str()
        {
            return Ok(figures);
        }
        shown.show(&figures);
        again.look(client, &figures)?;
        if let Some(report) = &mut report {
            report.record.look(&figures);
        }
        thread::sleep(interval);
    }
}

fn state(client: &mut Client) -> Result<String, ClientError> {
    let status = client.execute("query-status", json!({}))?;
    Ok(status["status"].as_str().unwrap_or("unknown").into())
}

/// Where the guest of a failed migration is, as far as the machine says.
fn whereabouts(client: &mut Client) -> String {
    match state(client) {
        Ok(state) if state == "running" => "the guest runs on where it was".into(),
        Ok(state) => format!("the guest is where it was, in state {state}"),
        Err(error) => format!("whether the guest runs on where it was is unknown: {error}"),
    }
}

/// SIGINT and SIGTERM: the first is something to look at between two steps, the second ends the process once the machine was asked to
/// cancel. Both may come at once: timeout(1) sends one to its command, and one to the command's process group.
struct Interrupts {
    pending: Arc<AtomicBool>,
    asking: mpsc::Sender<()>,
}

/// From one look at the interrupts to the next, which asks the machine to cancel, and for the request to be on its way.
const ASKED_WITHIN: Duration = Duration::from_secs(1);
const ON_ITS_WAY: Duration = Duration::from_millis(50);

impl Interrupts {
    fn new() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block()?;
        let pending = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&pending);
        let (asking, asked) = mpsc::channel();
        sandbox::spawn(Kind::Console, "signals", move || {
            if signals.wait().is_ok() {
                told.store(true, Ordering::Release);
                let _ = signals.wait();
                // A machine that does not answer is not waited for.
                let _ = asked.recv_timeout(ASKED_WITHIN);
                thread::sleep(ON_ITS_WAY);
                say("the machine was asked to cancel, and its answer is not waited for: see minivmm status");
                std::process::exit(EXIT_UNKNOWN.into());
            }
        })?;
        Ok(Self { pending, asking })
    }

    /// There was one since the last call.
    fn pending(&self) -> bool {
        self.pending.swap(false, Ordering::AcqRel)
    }

    /// The machine is about to be asked to cancel.
    fn asking(&self) {
        // Nobody listens any more once there was a second one.
        let _ = self.asking.send(());
    }
}

pub(super) fn summary(figures: &Value) -> String {
    match (figures["total-time"].as_u64(), figures["ram"]["transferred"].as_u64()) {
        (Some(total), Some(bytes)) => {
            let downtime = figures["downtime"].as_u64().map(milliseconds);
            let downtime = downtime.map(|downtime| format!(", downtime {downtime}")).unwrap_or_default();
            let slowed = figures["guest-slowdown"]["percent"].as_f64();
            let slowed = slowed.map(|percent| format!(", guest slowed by {percent:.1} %")).unwrap_or_default();
            format!(": {} in {}{downtime}{slowed}", size(bytes), milliseconds(total))
        }
        _ => String::new(),
    }
}

pub(super) fn failure(figures: &Value) -> String {
    match (figures["status"].as_str(), figures["error-desc"].as_str()) {
        (Some("cancelled"), None) => "the migration was cancelled".into(),
        (Some("cancelled"), Some(reason)) => format!("the migration was {reason}"),
        (_, Some(reason)) => format!("the migration failed: {reason}"),
        _ => "the migration failed, the machine does not say why".into(),
    }
}
