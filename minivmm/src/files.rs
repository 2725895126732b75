//! Opening the files that a user names, without waiting for whoever is at the other end: a FIFO keeps an open(2) until then,
//! and a serial line until its carrier comes.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// What a file may be for its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// A regular file.
    Regular,
    /// A regular file or a block device.
    Disk,
    /// Whatever can be written: also a FIFO that somebody reads, or a terminal.
    Output,
}

/// Opens `path` as `options` say.
///
/// # Errors
/// The system's, or what the file is, if its use needs another one.
pub fn open(path: &Path, options: &mut OpenOptions, fit: Fit) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = options.custom_flags(flags.bits()).open(path).map_err(|error| match Errno::try_from(error) {
        // fifo(7): opened for writing, without waiting, while nobody has it open for reading.
        Ok(Errno::ENXIO) => io::Error::other("nobody reads at its other end"),
        Ok(errno) => errno.into(),
        Err(error) => error,
    })?;
    let kind = file.metadata()?.file_type();
    let fits = match fit {
        Fit::Regular => kind.is_file(),
        Fit::Disk => kind.is_file() || kind.is_block_device(),
        Fit::Output => !kind.is_dir(),
    };
    if !fits {
        return Err(io::Error::other(format!("it is {}", name(kind))));
    }
    // Only the opening was not to wait.
    let status = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(status - OFlag::O_NONBLOCK))?;
    Ok(file)
}

fn name(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a regular file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "no file"
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn files_are_opened_by_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let (file, fifo) = (directory.path().join("file"), directory.path().join("fifo"));
        std::fs::write(&file, "text").unwrap();
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let read = |path: &Path, fit| open(path, File::options().read(true), fit);
        let refusal = |path: &Path, fit| read(path, fit).unwrap_err().to_string();
        for fit in [Fit::Regular, Fit::Disk] {
            assert!(read(&file, fit).is_ok());
            assert_eq!(refusal(&fifo, fit), "it is a FIFO");
            assert_eq!(refusal(Path::new("/dev/null"), fit), "it is a character device");
            assert_eq!(refusal(directory.path(), fit), "it is a directory");
        }
        assert_eq!(read(&directory.path().join("none"), Fit::Regular).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// And it is written to as if it had been opened in the usual way: a write waits for room.
    #[test]
    fn a_fifo_takes_output_once_somebody_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let write = || open(&fifo, File::options().write(true), Fit::Output);
        assert_eq!(write().unwrap_err().to_string(), "nobody reads at its other end");
        let flags = OFlag::O_NONBLOCK.bits();
        let reader = File::options().read(true).custom_flags(flags).open(&fifo).unwrap();
        let mut writer = write().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&[7; 1 << 20]));
        let mut taken = 0;
        while taken < 1 << 20 {
            // Nothing to be read, for a moment.
            taken += (&reader).read(&mut [0; 4096]).unwrap_or(0);
        }
        writing.join().unwrap().unwrap();
    }
}
