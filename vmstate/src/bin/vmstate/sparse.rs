//! Reads a sparse file without spending time or memory on its holes: the memory of a guest, each page at its place, is mostly
//! holes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Reads the whole file. Holes are not read: their bytes are zero pages that the kernel provides on access.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    let len = usize::try_from(metadata.len()).map_err(io::Error::other)?;
    // `vec!` would abort the process if the allocation failed.
    Vec::<u8>::new().try_reserve_exact(len)?;
    let mut bytes = vec![0; len];
    let mut at = 0;
    // A file system without holes reports that all of the file is data (lseek(2)).
    while let Some(data) = found(seek(&file, SeekFrom::Data(at)))? {
        let hole = found(seek(&file, SeekFrom::Hole(data)))?.unwrap_or(metadata.len());
        let (start, end) = (usize::try_from(data).unwrap_or(len), usize::try_from(hole).unwrap_or(len).min(len));
        let Some(into) = bytes.get_mut(start..end).filter(|into| !into.is_empty()) else { break };
        file.read_exact_at(into, data)?;
        at = hole;
    }
    Ok(bytes)
}

/// The result of a seek; `None` if there is no more data or hole.
fn found(sought: rustix::io::Result<u64>) -> io::Result<Option<u64>> {
    match sought {
        Err(Errno::NXIO) => Ok(None),
        sought => Ok(Some(sought?)),
    }
}
