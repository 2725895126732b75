//! The `newc` archive format: how files get into an initrd, and artifacts out of the emulated host.
//!
//! Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. A header of 110 ASCII bytes, the
//! name with its NUL, the data; header with name, and data, each padded to 4 bytes; `TRAILER!!!` ends the archive.

use std::io::{self, Read, Write};

const TRAILER: &str = "TRAILER!!!";
const HEADER: usize = 110;
const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    inode: u32,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// An empty archive on `out`.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0, written: 0 }
    }

    /// Adds a directory. Its parents must have been added before: the kernel makes none.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.header(name, DIRECTORY, 0)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.header(name, SYMLINK, target.len() as u64)?;
        self.put(target.as_bytes())?;
        self.pad(4)
    }

    /// Adds a regular file of `size` bytes read from `data`.
    ///
    /// # Errors
    /// Those of the reader and the writer, `UnexpectedEof` when `data` is shorter, `InvalidInput` from 4 GiB on.
    pub fn file(&mut self, name: &str, executable: bool, size: u64, data: impl Read) -> io::Result<()> {
        self.header(name, if executable { 0o100_755 } else { 0o100_644 }, size)?;
        let copied = io::copy(&mut data.take(size), &mut self.out)?;
        self.written += copied;
        if copied < size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} became shorter")));
        }
        self.pad(4)
    }

    /// Ends the archive, padded to 512 bytes: the kernel silently ignores an archive that follows an unpadded one.
    ///
    /// # Errors
    /// Those of the writer below.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(TRAILER, 0, 0)?;
        self.pad(512)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, name: &str, mode: u32, size: u64) -> io::Result<()> {
        let size = u32::try_from(size)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too large for an archive")))?;
        self.inode += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(to) - self.written;
        self.put(&[0; 512][..missing as usize])
    }
}

/// Reads the regular files of an archive, as pairs of name and content, in the archive's order.
///
/// # Errors
/// `InvalidData` when the bytes are no archive, or those of the reader.
pub fn read(mut archive: impl Read) -> io::Result<Vec<(String, Vec<u8>)>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("cpio archive: {what}"));
    let mut files = Vec::new();
    loop {
        let mut header = [0; HEADER];
        archive.read_exact(&mut header)?;
        if &header[..6] != b"070701" {
            return Err(invalid("bad magic"));
        }
        let field = |index: usize| {
            let digits = &header[6 + index * 8..][..8];
            let digits = std::str::from_utf8(digits).map_err(|_| invalid("bad number"))?;
            u32::from_str_radix(digits, 16).map_err(|_| invalid("bad number"))
        };
        let (mode, size, name_size) = (field(1)?, u64::from(field(6)?), field(11)? as usize);
        let mut name = take(&mut archive, (HEADER + name_size).next_multiple_of(4) as u64 - HEADER as u64)?;
        name.truncate(name_size.saturating_sub(1));
        let name = String::from_utf8(name).map_err(|_| invalid("bad name"))?;
        if name == TRAILER {
            return Ok(files);
        }
        let mut data = take(&mut archive, size.next_multiple_of(4))?;
        data.truncate(size as usize);
        if mode & 0o170_000 == 0o100_000 {
            files.push((name, data));
        }
    }
}

fn take(archive: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if archive.take(size).read_to_end(&mut bytes)? as u64 != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_as_the_format_says() {
        let mut archive = Writer::new(Vec::new());
        archive.file("ab", true, 3, &b"xyz"[..]).unwrap();
        let bytes = archive.finish().unwrap();
        let expected = [
            "070701000000010000 81ED0000000000000000000000010000000000000003",
            "00000000000000000000000000000000 00000003 00000000ab\0",
        ]
        .concat()
        .replace(' ', "");
        // 110 bytes of header and 3 of name, padded to 116.
        assert_eq!(&bytes[..113], expected.as_bytes());
        assert_eq!(&bytes[113..120], b"\0\0\0xyz\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn the_reader_gives_back_files_and_stops_at_the_trailer() {
        let mut archive = Writer::new(Vec::new());
        archive.directory("d").unwrap();
        archive.file("d/five", false, 5, &b"12345"[..]).unwrap();
        archive.symlink("link", "d/five").unwrap();
        archive.file("none", false, 0, &b""[..]).unwrap();
        let mut bytes = archive.finish().unwrap();
        bytes.extend(b"bytes after the trailer are not read");
        let expected = [("d/five".to_owned(), b"12345".to_vec()), ("none".to_owned(), Vec::new())];
        assert_eq!(read(&bytes[..]).unwrap(), expected);
        assert!(read(&bytes[..100]).is_err());
        assert!(read(&b"no archive"[..]).is_err());
    }
}
