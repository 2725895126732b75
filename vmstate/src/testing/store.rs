//! The folder of a lock: entries `1`, `2`, …, each with a schema and with streams named after their examples.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use crate::schema::json::Schema;

/// File name of an entry's schema.
pub(super) const SCHEMA: &str = "schema.json";
/// File name suffix of an entry's streams.
const STREAM: &str = ".bin";

/// One layout that was locked.
pub(super) struct Entry {
    pub(super) number: u32,
    pub(super) schema: Schema,
    pub(super) streams: BTreeMap<String, Vec<u8>>,
}

/// Reads the entries, oldest first; none if the folder does not exist.
pub(super) fn read(folder: &Path) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for (name, path) in list(folder)? {
        // Other files, such as a README, are ignored.
        if let Ok(number) = name.parse() {
            entries.push(entry(number, &path)?);
        }
    }
    entries.sort_by_key(|entry: &Entry| entry.number);
    Ok(entries)
}

fn entry(number: u32, folder: &Path) -> Result<Entry, String> {
    let schema = folder.join(SCHEMA);
    let text = fs::read_to_string(&schema).map_err(|error| failed(&schema, error))?;
    let schema = Schema::from_json(&text).map_err(|error| failed(&schema, error))?;
    let mut streams = BTreeMap::new();
    for (name, path) in list(folder)? {
        if let Some(state) = name.strip_suffix(STREAM) {
            streams.insert(state.to_owned(), fs::read(&path).map_err(|error| failed(&path, error))?);
        }
    }
    Ok(Entry { number, schema, streams })
}

/// The file name for the example called `state`.
pub(super) fn stream_name(state: &str) -> String {
    format!("{state}{STREAM}")
}

/// Adds a file to an entry; an existing file is never replaced.
pub(super) fn add(folder: &Path, number: u32, name: &str, bytes: &[u8]) -> Result<(), String> {
    let entry = folder.join(number.to_string());
    fs::create_dir_all(&entry).map_err(|error| failed(&entry, error))?;
    let path = entry.join(name);
    let created = fs::File::create_new(&path);
    created.and_then(|mut file| std::io::Write::write_all(&mut file, bytes)).map_err(|error| failed(&path, error))
}

fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(folder, error)),
    };
    let named = listed.map(|item| item.map(|item| (item.file_name().to_string_lossy().into_owned(), item.path())));
    named.collect::<std::io::Result<_>>().map_err(|error| failed(folder, error))
}

fn failed(path: &Path, error: impl Display) -> String {
    format!("{}: {error}\n", path.display())
}
