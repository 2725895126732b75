//! The schema of this machine, and that of an older release to which it goes.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use vmstate::schema::json::Schema;

use crate::boot::layout::MACHINE_TYPE;
use crate::migration::sections::Parts;
use crate::vm::request::Refusal;

/// Reads what [`write`] wrote.
pub(in crate::vm) fn read(file: &Path) -> Result<Schema, Refusal> {
    let text = std::fs::read_to_string(file).map_err(|error| failed(file, &error))?;
    Schema::from_json(&text).map_err(|error| failed(file, &error))
}

/// Writes what a machine of these parts sends to a new file.
pub(in crate::vm) fn write(parts: &Parts, file: &Path) -> Result<(), Refusal> {
    let schema = parts.sections().and_then(|sections| sections.schema(Some(MACHINE_TYPE)));
    let text = schema.map_err(|error| failed(file, &error))?.to_json();
    let written = File::create_new(file).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| failed(file, &error))
}

fn failed(file: &Path, error: &dyn Display) -> Refusal {
    Refusal(format!("{}: {error}", file.display()))
}
