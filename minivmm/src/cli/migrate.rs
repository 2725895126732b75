//! `minivmm migrate`: asks a running machine to migrate, shows progress, and waits for the end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::interrupts::Interrupts;
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
use crate::error::print_message;
use crate::passed;

/// Interval between two queries of the figures: short enough to follow, long enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(200);
/// Interval between two queries of the figures for a report, which draws them.
const SAMPLING: Duration = Duration::from_millis(50);

const AFTER_HELP: &str = "\
Progress goes to standard error: on a terminal one line that is rewritten, elsewhere a line of key=value words for each new phase and round.
The first Ctrl-C cancels the migration and waits until the guest runs on; the second ends this command at once, and the machine goes on
cancelling.

Exit codes:
  0  the guest runs at the destination, or is in the file
  1  the migration failed or was cancelled, or the machine refused to begin: the guest is where it was
  2  nothing was begun: the command line is wrong, or the machine cannot be reached
  3  the destination did not confirm, but holds the guest's disks or has run the guest: the guest stays stopped at the source; with --postcopy also: the guest ran at the
     destination, and the rest of its memory was given up
  4  the destination did not confirm, and nothing proves whether it runs the guest: the guest stays stopped at the source
  5  unknown: the machine went away before it reported the end, or Ctrl-C was pressed twice: look at both sides

Examples:
  minivmm migrate --control unix:/run/vm/qmp unix:/run/vm/move
  minivmm migrate --control unix:/run/vm/qmp --downtime-limit 100ms --max-bandwidth 1G tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp --local
  minivmm migrate --control unix:/run/vm/qmp --postcopy tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp --resume tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp --report move.html tcp:10.0.0.2:4444
  minivmm migrate --control unix:/run/vm/qmp 'exec:ssh b.example socat - UNIX-CONNECT:/run/vm/move'
  minivmm migrate --control unix:/run/vm/qmp --channels 4 --compress zstd:1 --auto-converge tcp:10.0.0.2:4444";

/// Name under which a descriptor is passed to the machine for a migration.
const PASSED: &str = "migrate";

/// Flags of `minivmm migrate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct MigrateArgs {
    /// The machine to migrate.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Destination: unix:PATH, tcp:HOST:PORT or vsock:CID:PORT. exec:COMMAND starts COMMAND in a shell and connects to its
    /// standard input and output; it has to carry bytes both ways. fd:N is a connected socket that this process was passed.
    /// file:PATH[,offset=N] stops the guest and writes it to a new file; so does fd:N with a pipe or file that was passed
    #[arg(value_name = "ADDRESS", value_parser = str::parse::<Address>, required_unless_present = "local")]
    pub to: Option<Address>,
    /// Switch over at once (post-copy): the guest runs at the destination while the rest of its memory is sent. A connection
    /// that breaks meanwhile is made again
    #[arg(long, conflicts_with_all = ["local", "to_qemu"])]
    pub postcopy: bool,
    /// Write a file for QEMU, without the sections that only minivmm reads
    #[arg(long)]
    pub to_qemu: bool,
    /// Send the content of the writable disks too, for hosts without shared storage: the destination creates an image for each
    /// of them (minivmm run --disk FILE,create=SIZE). With names, as minivmm status shows them (--copy-disk=virtio1,virtio2),
    /// only of these disks; the others are shared
    #[arg(long, value_name = "DISK", num_args = 0.., require_equals = true, value_delimiter = ',')]
    #[arg(conflicts_with_all = ["local", "to_qemu"])]
    pub copy_disk: Option<Vec<String>>,
    /// Resume a migration with --postcopy whose connection broke and whose command does not run any more: the rest of the
    /// guest's memory is sent to this address. A command that still runs does that by itself
    #[arg(long, conflicts_with_all = ["local", "to_qemu", "copy_disk", "postcopy", "target_schema"])]
    pub resume: bool,
    /// Options for a new process on this host.
    #[command(flatten)]
    pub update: UpdateArgs,
    /// Set for a snapshot: the guest runs on here once all of it is in the file.
    #[arg(skip)]
    pub keep_running: bool,
    /// Schema that the destination's minivmm, of an older release, wrote with dump-schema: the guest is sent in the format of
    /// that release
    #[arg(long, value_name = "FILE")]
    pub target_schema: Option<PathBuf>,
    /// Write a report of the migration as an HTML page, with its numbers as JSON; an existing file is overwritten
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Parameters of TLS.
    #[command(flatten, next_help_heading = "Encryption, in this migration and later ones")]
    pub tls: TlsArgs,
    /// Parameters of sending pages.
    #[command(flatten, next_help_heading = "How pages are sent, in this migration and later ones")]
    pub sending: SendingArgs,
    /// Parameters of the policy.
    #[command(
        flatten,
        next_help_heading = "When to switch over, throttle and give up, in this migration and later ones"
    )]
    pub policy: PolicyArgs,
}

/// How a migration that had begun ended. Each variant but the first carries a sentence that says why, and where the guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the destination.
    Completed,
    /// The migration failed or was cancelled: the guest is where it was.
    Stayed(String),
    /// The destination did not confirm, but holds the guest's disks, or a process has run the guest: the guest stays stopped at
    /// the source.
    Unacknowledged(String),
    /// The destination did not confirm, and nothing proves whether it runs the guest: the guest stays stopped at the source.
    Undecided(String),
    /// The machine went away before it reported how the migration ended.
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
    /// Migrates, and shows progress on standard error. Ctrl-C cancels the migration; a second Ctrl-C ends the process.
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
        if let Some(names) = &self.copy_disk {
            arguments["copy-disk"] = if names.is_empty() { true.into() } else { names.clone().into() };
        }
        if self.keep_running {
            arguments["keep-running"] = true.into();
        }
        if let Some(file) = &self.target_schema {
            // The machine reads the file, and may have been started in another folder.
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
                // A migration that has ended already reports its end below.
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
            // The machine may exit as soon as the guest has left; then its last event says how the migration ended.
            Err(_) if client.migration_status() == Some("completed") => Ok(json!({"status": "completed"})),
            end => end,
        };
        let outcome = self.outcome(to, figures.as_ref(), client);
        if let Some(report) = report {
            let to = to.to_string();
            let written = report.write((&to, outcome.sentence()), figures.unwrap_or_default(), client);
            // A report that cannot be written does not change how the migration ended.
            written.unwrap_or_else(print_message);
        }
        outcome
    }

    /// Derives the outcome of a migration from its last figures.
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
                        let path = path.display();
                        let disks =
                            self.copy_disk.as_ref().map(|_| format!(", with its disks in {path}.virtio0 and so on"));
                        format!("the guest runs on, its state of one moment is in {path}{}", disks.unwrap_or_default())
                    }
                    Address::File { path, .. } => format!("the guest is stopped, its state is in {}", path.display()),
                    to => format!("migrated to {to}"),
                };
                progress::print(&(what + &summary(figures)));
                Outcome::Completed
            }
            Some("unacknowledged") => Outcome::Unacknowledged(why("the destination did not confirm")),
            Some("undecided") => Outcome::Undecided(why("the destination did not confirm")),
            // A migration in post-copy failed after the destination ran the guest.
            Some("failed") if state(client).is_ok_and(|state| state == "postmigrate") => {
                Outcome::Unacknowledged(failure(figures))
            }
            _ => {
                let mut sentence = format!("{}; {}", failure(figures), guest_location(client));
                if let (Address::Exec(_), None | Some(0)) = (to, figures["ram"]["transferred"].as_u64()) {
                    sentence += ONE_WAY;
                }
                Outcome::Stayed(sentence)
            }
        }
    }
}

/// Opens a connection that the machine cannot make itself: the machine starts no programs, and does not have this process's
/// descriptors.
fn to_be_passed(to: &Address) -> Result<Option<OwnedFd>, ClientError> {
    let refused = |why| ClientError::Address { address: to.to_string(), why };
    match to {
        // The command ends when its connection does; nothing waits for it.
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

/// Hint for an `exec:COMMAND` that answered nothing, as QEMU's usual `exec:gzip >FILE`.
const ONE_WAY: &str = ". The command has to carry bytes both ways, because the source waits for the destination's answers. For a command that only reads, \
     stop the guest and write it to a pipe: minivmm migrate fd:3 3> >(COMMAND)";

/// Interval between two attempts to reconnect.
const AGAIN: Duration = Duration::from_secs(1);

/// Reconnects a migration in post-copy whose connection broke.
struct Again {
    /// Address of the destination; `None` if this process cannot connect to it twice.
    uri: Option<String>,
    /// When the last attempt began; `None` while the connection is whole.
    tried: Option<Instant>,
}

impl Again {
    fn new(to: &Address) -> Self {
        let is_address = matches!(to, Address::Unix(_) | Address::Tcp(_) | Address::Vsock { .. });
        Self { uri: is_address.then(|| to.to_string()), tried: None }
    }

    /// Reconnects if `figures` say that the connection is broken.
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
                    "this command reconnects until it succeeds; Ctrl-C gives up the rest of the guest's memory, and with it the guest"
                }
                None => {
                    "minivmm migrate --resume ADDRESS reconnects; Ctrl-C gives up the rest of the guest's memory, and with it the guest"
                }
            };
            print_message(format_args!("{why} ({what})"));
        }
        let Some(uri) = &self.uri else { return Ok(()) };
        match client.execute("migrate", json!({"uri": uri, "resume": true})) {
            // A refusal means that the migration is connected by now, or has ended.
            Ok(_) | Err(ClientError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Shows progress until the migration has ended; returns the last figures.
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
                // A refusal means that the migration has ended: the figures say how.
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

/// Where the guest of a failed migration is, as the machine reports it.
fn guest_location(client: &mut Client) -> String {
    match state(client) {
        Ok(state) if state == "running" => "the guest runs on where it was".into(),
        Ok(state) => format!("the guest is where it was, in state {state}"),
        Err(error) => format!("whether the guest runs on where it was is unknown: {error}"),
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
