//! `minivmm migrate --report FILE` writes a migration's figures to an HTML page, for a person and as JSON.
//!
//! Samples of the figures are taken while the migration runs; rounds, devices and parameters are queried once it is over.

mod heat;
mod page;
mod pictures;
mod shown;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use crate::control::{Client, ClientError};

/// Most samples that are kept: at this number every second one is dropped, and from then on half as many are taken.
const SAMPLES: usize = 1000;

/// Members that are kept of each answer to `query-migrate`, beside `ram`.
const OF_FIGURES: &[&str] = &["status", "expected-downtime", "cpu-throttle-percentage"];
const OF_RAM: &[&str] = &["transferred", "remaining", "mbps", "dirty-sync-count", "dirty-pages-rate", "page-size"];

/// Queries after the migration, and the name of each answer in the JSON.
const AFTERWARDS: [(&str, &str); 4] = [
    ("rounds", "query-migrate-rounds"),
    ("sections", "query-migrate-sections"),
    ("heat", "query-migrate-heat"),
    ("parameters", "query-migrate-parameters"),
];

/// Prints the page about some migrations, each a [`Record`] that has ended.
pub fn page(records: &[Value]) -> String {
    page::page(records)
}

/// Numbers of a migration, gathered while it runs.
#[derive(Debug)]
pub struct Record {
    begun: Instant,
    samples: Vec<Value>,
    /// Interval of the samples, in calls of `look`.
    every: usize,
    looks: usize,
    ram: Value,
}

impl Default for Record {
    /// Begins the record of a migration.
    fn default() -> Self {
        Self { begun: Instant::now(), samples: Vec::new(), every: 1, looks: 0, ram: Value::Null }
    }
}

impl Record {
    /// Adds an answer to `query-migrate`.
    pub fn look(&mut self, figures: &Value) {
        let ram = &figures["ram"];
        if ram.is_null() {
            return;
        }
        self.ram = ram.clone();
        if self.looks.is_multiple_of(self.every) {
            let mut sample = json!({"at-ms": u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)});
            for (members, from) in [(OF_FIGURES, figures), (OF_RAM, ram)] {
                for member in members.iter().filter(|member| !from[**member].is_null()) {
                    sample[*member] = from[*member].clone();
                }
            }
            self.samples.push(sample);
        }
        self.looks += 1;
        if self.samples.len() == SAMPLES {
            let mut index = 0;
            self.samples.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
    }

    /// Completes the record of a migration to the address `to`, which ended as `sentence` says, with these last `figures`.
    /// `ask` sends a query to the source, and returns null if the source does not have it.
    pub fn end(self, (to, sentence): (&str, &str), mut figures: Value, mut ask: impl FnMut(&str) -> Value) -> Value {
        if figures["ram"].is_null() {
            figures["ram"] = self.ram;
        }
        let mut record = json!({ "to": to, "end": sentence, "figures": figures, "samples": self.samples });
        for (name, query) in AFTERWARDS {
            record[name] = ask(query);
        }
        record
    }
}

/// Report that is being gathered, and its file.
#[derive(Debug)]
pub(super) struct Report {
    path: PathBuf,
    file: File,
    pub(super) record: Record,
}

impl Report {
    /// Creates the file before the migration begins; an existing one is emptied.
    pub(super) fn create(path: &Path) -> Result<Self, ClientError> {
        let file = File::create(path).map_err(|source| ClientError::Report { path: path.into(), source })?;
        Ok(Self { path: path.into(), file, record: Record::default() })
    }

    /// Writes the page; `end` is the destination's address and the sentence that says how the migration ended.
    pub(super) fn write(mut self, end: (&str, &str), figures: Value, client: &mut Client) -> Result<(), ClientError> {
        // A machine that has exited or is of another release does not answer.
        let data = self.record.end(end, figures, |query| client.execute(query, json!({})).unwrap_or_default());
        let failed = |source: io::Error| ClientError::Report { path: self.path, source };
        self.file.write_all(page(&[data]).as_bytes()).map_err(failed)
    }
}
