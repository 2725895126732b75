//! `minivmm status` prints the state of a running machine, in a few lines or as JSON.

use std::fmt::Write;

use clap::Args;
use serde_json::{Map, Value, json};
use vmstate::error::Printable;

use crate::cli::machine::MachineArgs;
use crate::cli::migrate;
use crate::cli::progress::sentence;
use crate::cli::units::size;
use crate::control::ClientError;

/// Queries, and the name of each answer in the JSON. A machine of another release may lack some.
const QUERIES: &[(&str, &str)] = &[
    ("version", "query-version"),
    ("status", "query-status"),
    ("migration", "query-migrate"),
    ("cpus", "query-cpus-fast"),
    ("block", "query-block"),
    ("block-jobs", "query-block-jobs"),
    ("chardev", "query-chardev"),
];

/// Flags of `minivmm status`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  minivmm status --control unix:/run/vm/qmp\n  \
minivmm status --control unix:/run/vm/qmp --json | jq .migration.ram")]
pub struct StatusArgs {
    /// The running machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Print one JSON object, whose members are the answers to QMP's queries
    #[arg(long)]
    pub json: bool,
}

impl StatusArgs {
    /// Queries the machine; returns the text to print.
    ///
    /// # Errors
    /// The machine cannot be reached, or fails while it answers.
    pub fn carry_out(&self) -> Result<String, ClientError> {
        let mut client = self.machine.connect()?;
        let known = client.execute("query-commands", json!({}))?;
        let is_known = |name: &str| known.as_array().is_some_and(|list| list.iter().any(|one| one["name"] == name));
        let mut answers = Map::new();
        for (member, query) in QUERIES.iter().filter(|(_, query)| is_known(query)) {
            answers.insert((*member).into(), client.execute(query, json!({}))?);
        }
        let answers = Value::Object(answers);
        Ok(if self.json { answers.to_string() } else { lines(&answers) })
    }
}

fn lines(answers: &Value) -> String {
    let mut text = format!("guest: {}", shown(&answers["status"]["status"]));
    let mut line = |name: &str, what: &str| {
        let _ = write!(text, "\n{name}: {}", Printable(what));
    };
    line("migration", &migration(&answers["migration"]));
    if let Some(vcpus) = answers["cpus"].as_array() {
        line("vcpus", &vcpus.len().to_string());
    }
    for disk in answers["block"].as_array().into_iter().flatten() {
        let (name, inserted) = (&disk["device"], &disk["inserted"]);
        let read_only = if inserted["ro"] == true { ", read-only" } else { "" };
        line("disk", &format!("{} {}{read_only}", shown(name), shown(&inserted["file"])));
    }
    for job in answers["block-jobs"].as_array().into_iter().flatten() {
        let [offset, len] = ["offset", "len"].map(|figure| job[figure].as_u64().unwrap_or(0));
        line("backup", &format!("job {}, {} of {} copied", shown(&job["device"]), size(offset), size(len)));
    }
    for device in answers["chardev"].as_array().into_iter().flatten() {
        line("chardev", &format!("{} {}", shown(&device["label"]), shown(&device["filename"])));
    }
    line("version", &shown(&answers["version"]["package"]));
    text
}

fn shown(value: &Value) -> String {
    value.as_str().unwrap_or("unknown").into()
}

fn migration(figures: &Value) -> String {
    match figures["status"].as_str() {
        None | Some("none") => "none".into(),
        Some("completed") => format!("completed{}", migrate::summary(figures)),
        Some("failed" | "cancelled") => migrate::failure(figures),
        Some(end @ ("unacknowledged" | "undecided")) => match figures["error-desc"].as_str() {
            Some(why) => format!("{end}: {why}"),
            None => end.into(),
        },
        Some(_) => sentence(figures),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_in_a_few_lines() {
        let answers = json!({
            "version": {"package": "minivmm 0.1.0"},
            "status": {"status": "running", "running": true},
            "migration": {"status": "failed", "error-desc": "no route\nto host"},
            "cpus": [{}, {}],
            "block": [
                {"device": "disk0", "inserted": {"file": "/a.raw", "ro": false}},
                {"device": "disk1", "inserted": {"file": "/b.raw", "ro": true}},
            ],
            "block-jobs": [{"device": "nightly", "offset": 1 << 20, "len": 3 << 20}],
            "chardev": [{"label": "serial0", "filename": "pty:/dev/pts/3"}],
        });
        assert_eq!(
            lines(&answers),
            "guest: running\nmigration: the migration failed: no route\\nto host\nvcpus: 2\ndisk: disk0 /a.raw\n\
             disk: disk1 /b.raw, read-only\nbackup: job nightly, 1 MiB of 3 MiB copied\nchardev: serial0 pty:/dev/pts/3\nversion: minivmm 0.1.0"
        );
    }

    #[test]
    fn a_machine_with_few_queries() {
        let answers = json!({"version": {"package": "x"}, "status": {"status": "paused"}, "migration": {}});
        assert_eq!(lines(&answers), "guest: paused\nmigration: none\nversion: x");
    }
}
