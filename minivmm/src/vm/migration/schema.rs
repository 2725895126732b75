//! Schema of this machine, and schemas of older releases as destinations.

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use vmstate::schema::json::Schema;

use crate::files::{self, Fit, Mode};
use crate::machine_map::MACHINE_TYPE;
use crate::migration::sections::Parts;
use crate::vm::request::Refusal;

/// Longest schema that is read, in bytes; a machine's is a hundredth of that.
const LONGEST: u64 = 16 << 20;

/// Reads a schema that [`write`] has written.
pub(in crate::vm) fn read(file: &Path) -> Result<Schema, Refusal> {
    let mut text = String::new();
    let opened = files::open_path(file, Mode::Read, Fit::Regular);
    let read = opened.and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
    read.map_err(|error| failed(file, &error))?;
    if text.len() as u64 > LONGEST {
        return Err(failed(file, &format!("it is longer than {LONGEST} bytes, and so no schema")));
    }
    Schema::from_json(&text).map_err(|error| failed(file, &error))
}

/// Writes the schema of a machine with these parts to a new file.
pub(in crate::vm) fn write(parts: &Parts, file: &Path) -> Result<(), Refusal> {
    let schema = parts.sections().and_then(|sections| sections.schema(Some(MACHINE_TYPE)));
    let text = schema.map_err(|error| failed(file, &error))?.to_json();
    let written = File::create_new(file).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| failed(file, &error))
}

fn failed(file: &Path, error: &dyn Display) -> Refusal {
    Refusal(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// The driver reads the file, and must not wait for it.
    #[test]
    fn an_invalid_schema_is_refused_and_delays_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |name: &str| {
            let file = directory.path().join(name);
            let Refusal(why) = read(&file).unwrap_err();
            why.strip_prefix(&format!("{}: ", file.display())).unwrap().to_owned()
        };
        mkfifo(&directory.path().join("fifo"), Mode::S_IRWXU).unwrap();
        assert_eq!(refused("fifo"), "it is a FIFO");
        File::create(directory.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(refused("huge"), "it is longer than 16777216 bytes, and so no schema");
        assert_eq!(refused("none"), "No such file or directory (os error 2)");
    }
}
