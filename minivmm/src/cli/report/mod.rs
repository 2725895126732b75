//! `minivmm migrate --report FILE`: what a migration was like, as a page that a person reads and as the numbers in it.
//!
//! While it runs its figures are kept now and then; rounds and parameters come from the machine once it is over.

mod page;

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

/// A report that is being gathered.
#[derive(Debug)]
pub(super) struct Report {
    path: PathBuf,
    file: File,
    begun: Instant,
    samples: Vec<Value>,
    /// One in so many looks is kept.
    every: usize,
    looks: usize,
    ram: Value,
}

impl Report {
    /// Opens the file, before anything begins: what was in it is replaced.
    pub(super) fn create(path: &Path) -> Result<Self, ClientError> {
        let file = File::create(path).map_err(|source| ClientError::Report { path: path.into(), source })?;
        let (samples, ram) = (Vec::new(), Value::Null);
        Ok(Self { path: path.into(), file, begun: Instant::now(), samples, every: 1, looks: 0, ram })
    }

    /// Takes in what `query-migrate` answered.
    pub(super) fn look(&mut self, figures: &Value) {
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

    /// Writes the page about a migration `to` there, which ended as `sentence` says.
    pub(super) fn write(
        mut self,
        (to, sentence): (&str, &str),
        mut figures: Value,
        client: &mut Client,
    ) -> Result<(), ClientError> {
        if figures["ram"].is_null() {
            figures["ram"] = std::mem::take(&mut self.ram);
        }
        // A machine that has ended, or of another release, does not tell.
        let mut ask = |query: &str| client.execute(query, json!({})).unwrap_or_default();
        let data = json!({
            "to": to,
            "end": sentence,
            "figures": figures,
            "rounds": ask("query-migrate-rounds"),
            "parameters": ask("query-migrate-parameters"),
            "samples": self.samples,
        });
        let failed = |source: io::Error| ClientError::Report { path: self.path.clone(), source };
        self.file.write_all(page::page(&data).as_bytes()).map_err(failed)
    }
}
