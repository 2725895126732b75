//! `minivmm migrate --report FILE`: what a migration was like, as a page that a person reads and as the numbers in it.
//!
//! While it runs its figures are kept now and then; rounds, devices and parameters come from the machine once it is over.

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

/// Figures kept at most: then every second is dropped, and from then on kept half as often.
const SAMPLES: usize = 1000;

/// What is kept of each answer to `query-migrate`, beside `ram`.
const OF_FIGURES: &[&str] = &["status", "expected-downtime", "cpu-throttle-percentage"];
const OF_RAM: &[&str] = &["transferred", "remaining", "mbps", "dirty-sync-count", "dirty-pages-rate", "page-size"];

/// What is asked once it is over, and its name in the JSON.
const AFTERWARDS: [(&str, &str); 4] = [
    ("rounds", "query-migrate-rounds"),
    ("sections", "query-migrate-sections"),
    ("heat", "query-migrate-heat"),
    ("parameters", "query-migrate-parameters"),
];

/// The page about migrations, of which each is a [`Record`] that has ended.
pub fn page(records: &[Value]) -> String {
    page::page(records)
}

/// The numbers of a migration, as they are gathered.
#[derive(Debug)]
pub struct Record {
    begun: Instant,
    samples: Vec<Value>,
    /// One in so many looks is kept.
    every: usize,
    looks: usize,
    ram: Value,
}

impl Default for Record {
    /// A migration begins.
    fn default() -> Self {
        Self { begun: Instant::now(), samples: Vec::new(), every: 1, looks: 0, ram: Value::Null }
    }
}

impl Record {
    /// Takes in what `query-migrate` answered.
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

    /// A migration `to` there has ended as `sentence` says, with these last `figures`; `ask` has the source answer a query, and
    /// returns null if it does not know it.
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

/// A report that is being gathered, and its file.
#[derive(Debug)]
pub(super) struct Report {
    path: PathBuf,
    file: File,
    pub(super) record: Record,
}

impl Report {
    /// Opens the file, before anything begins: what was in it is replaced.
    pub(super) fn create(path: &Path) -> Result<Self, ClientError> {
        let file = File::create(path).map_err(|source| ClientError::Report { path: path.into(), source })?;
        Ok(Self { path: path.into(), file, record: Record::default() })
    }

    /// Writes the page about a migration `to` there, which ended as `sentence` says.
    pub(super) fn write(mut self, end: (&str, &str), figures: Value, client: &mut Client) -> Result<(), ClientError> {
        // A machine that has ended, or of another release, does not tell.
        let data = self.record.end(end, figures, |query| client.execute(query, json!({})).unwrap_or_default());
        let failed = |source: io::Error| ClientError::Report { path: self.path, source };
        self.file.write_all(page(&[data]).as_bytes()).map_err(failed)
    }
}
