//! The inputs kept for a target: one archive, `corpus/TARGET.inputs`, of inputs that together reach all code known to
//! be reachable; and each find as a file of its own, `corpus/TARGET/NAME`.
//!
//! An archive is a sequence of inputs, each preceded by its length as four bytes, big-endian: the shortest first,
//! inputs of one length in the order of their bytes, none twice. So the same inputs always make the same archive.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// An input with its name.
type Named = (String, Vec<u8>);

/// Path of the archive of `target`.
pub fn archive(target: &str) -> PathBuf {
    folder().join(format!("{target}.inputs"))
}

/// The inputs in the archive of `target`; none for a new target, which has no archive yet.
///
/// # Errors
/// When the archive cannot be read or is damaged.
pub fn archived(target: &str) -> io::Result<Vec<Named>> {
    let path = archive(target);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let inputs = fs::read(&path).and_then(|bytes| decode(&bytes).ok_or_else(|| damaged("ends within an input")));
    let inputs = inputs.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(inputs.into_iter().enumerate().map(|(index, input)| (format!("{target}.inputs, {index}"), input)).collect())
}

/// The finds of `target`, by the names of their files.
///
/// # Errors
/// When a file cannot be read.
pub fn finds(target: &str) -> io::Result<Vec<Named>> {
    let folder = folder().join(target);
    if folder.is_dir() { files(&folder) } else { Ok(Vec::new()) }
}

/// The files of a folder, by name.
///
/// # Errors
/// When a file cannot be read.
pub fn files(folder: &Path) -> io::Result<Vec<Named>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        files.push((path.display().to_string(), fs::read(&path)?));
    }
    files.sort();
    Ok(files)
}

/// The archive of these inputs.
///
/// # Errors
/// When an input has 4 GiB or more.
pub fn encode(inputs: impl IntoIterator<Item = Vec<u8>>) -> io::Result<Vec<u8>> {
    let inputs: BTreeSet<(usize, Vec<u8>)> = inputs.into_iter().map(|input| (input.len(), input)).collect();
    let mut archive = Vec::new();
    for (length, input) in inputs {
        let length = u32::try_from(length).map_err(|_| damaged("is too long for an archive"))?;
        archive.extend_from_slice(&length.to_be_bytes());
        archive.extend_from_slice(&input);
    }
    Ok(archive)
}

fn decode(mut archive: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut inputs = Vec::new();
    while !archive.is_empty() {
        let (length, rest) = archive.split_first_chunk()?;
        let (input, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        inputs.push(input.to_vec());
        archive = rest;
    }
    Some(inputs)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_the_same_whatever_the_order_of_its_inputs() {
        let bytes = b"\0\0\0\0\0\0\0\x01a\0\0\0\x01b\0\0\0\x02aa";
        let [empty, a, b, aa] = [&b""[..], b"a", b"b", b"aa"].map(<[u8]>::to_vec);
        let mixed = [&b, &aa, &empty, &a, &b].map(Vec::clone);
        assert_eq!(encode(mixed).unwrap(), bytes);
        assert_eq!(decode(bytes).unwrap(), [empty, a, b, aa]);
    }

    #[test]
    fn a_truncated_archive_is_detected() {
        let bytes = encode([b"first".to_vec(), b"second".to_vec()]).unwrap();
        // A cut after a whole input leaves a valid archive.
        let whole = (0..bytes.len()).filter(|&length| decode(&bytes[..length]).is_some());
        assert_eq!(whole.collect::<Vec<_>>(), [0, 4 + 5]);
    }
}
