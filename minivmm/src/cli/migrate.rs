//! `minivmm migrate`: asks a running machine to migrate, shows progress, and waits for the end.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::{Value, json};
use vmstate::error::Printable;

use crate::cli::parameters::{PolicyArgs, SendingArgs};
use crate::cli::values;
use crate::config::Address;
use crate::control::{Client, ClientError};

/// Time between two looks at the figures: often enough to follow, rare enough to cost nothing.
const INTERVAL: Duration = Duration::from_millis(200);

/// Flags of `minivmm migrate`.
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// QMP socket of the machine: unix:PATH
    #[arg(long, value_name = "unix:PATH", value_parser = values::control)]
    pub control: PathBuf,
    /// Where the machine shall go: unix:PATH or tcp:HOST:PORT
    #[arg(value_name = "ADDRESS", value_parser = str::parse::<Address>)]
    pub to: Address,
    /// What the destination's minivmm, of an older release, wrote with dump-schema: the guest is sent as that release sends it
    #[arg(long, value_name = "FILE")]
    pub target_schema: Option<PathBuf>,
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

impl MigrateArgs {
    /// Migrates; Ctrl-C cancels. Progress goes to standard error, as one line that is rewritten, if that is a terminal.
    ///
    /// # Errors
    /// The machine cannot be reached, or refuses to begin.
    pub fn carry_out(&self) -> Result<Outcome, ClientError> {
        let interrupts = Interrupts::new()?;
        let mut client = Client::connect(&self.control)?;
        let mut arguments = json!({"uri": self.to.to_string()});
        if let Some(file) = &self.target_schema {
            // The machine reads it, and may have been started in another folder.
            arguments["target-schema"] = std::path::absolute(file)?.display().to_string().into();
        }
        client.set_parameters(self.sending.changes().chain(self.policy.changes()))?;
        client.execute("migrate", arguments)?;
        let mut line = ProgressLine::default();
        let end = follow(&mut client, &interrupts, &mut line);
        let figures = match end {
            Ok(figures) => figures,
            // The machine may end as soon as the guest has left: its last event tells.
            Err(_) if client.migration_status() == Some("completed") => json!({"status": "completed"}),
            Err(error) => {
                line.end("");
                return Ok(Outcome::Unknown(format!(
                    "{error}, and how the migration ended is unknown; look at {} whether the guest runs there",
                    self.to
                )));
            }
        };
        let why = |otherwise: &str| figures["error-desc"].as_str().unwrap_or(otherwise).to_owned();
        Ok(match figures["status"].as_str() {
            Some("completed") => {
                line.end(&format!("migrated to {}{}", self.to, summary(&figures)));
                return Ok(Outcome::Completed);
            }
            end => {
                line.end("");
                match end {
                    Some("unacknowledged") => Outcome::Unacknowledged(why("the destination did not confirm")),
                    Some("undecided") => Outcome::Undecided(why("the destination did not confirm")),
                    _ => Outcome::Stayed(format!("{}; {}", failure(&figures), whereabouts(&mut client))),
                }
            }
        })
    }
}

/// Until the migration has ended; its last figures.
fn follow(client: &mut Client, interrupts: &Interrupts, line: &mut ProgressLine) -> Result<Value, ClientError> {
    loop {
        if interrupts.pending()? {
            line.show("cancelling");
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
        line.show(&progress(&figures));
        thread::sleep(INTERVAL);
    }
}

/// Where the guest of a failed migration is, as far as the machine says.
fn whereabouts(client: &mut Client) -> String {
    match client.execute("query-status", json!({})) {
        Ok(status) if status["status"] == "running" => "the guest runs on where it was".into(),
        Ok(status) => format!("the guest is where it was, in state {}", status["status"].as_str().unwrap_or("unknown")),
        Err(error) => format!("whether the guest runs on where it was is unknown: {error}"),
    }
}

/// SIGINT and SIGTERM as something to look at between two steps.
struct Interrupts(SignalFd);

impl Interrupts {
    fn new() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    fn pending(&self) -> io::Result<bool> {
        Ok(self.0.read_signal()?.is_some())
    }
}

fn progress(figures: &Value) -> String {
    let ram = &figures["ram"];
    if ram.is_null() {
        return figures["status"].as_str().unwrap_or("waiting").to_string();
    }
    let mebibytes = |member: &str| ram[member].as_u64().unwrap_or(0) >> 20;
    let mut text = format!(
        "{}: round {}, {} of {} MiB left, {:.0} Mbit/s",
        figures["status"].as_str().unwrap_or("active"),
        ram["dirty-sync-count"],
        mebibytes("remaining"),
        mebibytes("total"),
        ram["mbps"].as_f64().unwrap_or(0.0)
    );
    if let Some(downtime) = figures["expected-downtime"].as_u64() {
        text += &format!(", expected downtime {downtime} ms");
    }
    if let Some(throttle) = figures["cpu-throttle-percentage"].as_u64() {
        text += &format!(", throttled by {throttle} %");
    }
    text
}

fn summary(figures: &Value) -> String {
    match (figures["total-time"].as_u64(), figures["ram"]["transferred"].as_u64()) {
        (Some(total), Some(bytes)) => {
            let downtime =
                figures["downtime"].as_u64().map(|downtime| format!(", downtime {downtime} ms")).unwrap_or_default();
            let slowed = figures["guest-slowdown"]["percent"].as_f64();
            let slowed = slowed.map(|percent| format!(", guest slowed by {percent:.1} %")).unwrap_or_default();
            format!(": {} MiB in {total} ms{downtime}{slowed}", bytes >> 20)
        }
        _ => String::new(),
    }
}

fn failure(figures: &Value) -> String {
    match (figures["status"].as_str(), figures["error-desc"].as_str()) {
        (Some("cancelled"), None) => "the migration was cancelled".into(),
        (Some("cancelled"), Some(reason)) => format!("the migration was {reason}"),
        (_, Some(reason)) => format!("the migration failed: {reason}"),
        _ => "the migration failed, the machine does not say why".into(),
    }
}

/// One line on standard error, rewritten in place; nothing but the last word where that is no terminal.
#[derive(Default)]
struct ProgressLine {
    shown: bool,
}

impl ProgressLine {
    fn show(&mut self, text: &str) {
        let mut stderr = io::stderr().lock();
        if stderr.is_terminal() {
            self.shown = true;
            // ECMA-48 EL: erases what a longer line before left.
            let _ = write!(stderr, "\r{}\x1b[K", Printable(text));
            let _ = stderr.flush();
        }
    }

    #[expect(clippy::print_stderr, reason = "a line without the program's name")]
    fn end(&mut self, text: &str) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
        if !text.is_empty() {
            eprintln!("{}", Printable(text));
        }
    }
}
