//! Opens files that a user names without waiting for another process: open(2) of a FIFO waits for its other end, and that of a
//! serial line for its carrier. A passed descriptor (`passed.rs`) is used as it is, if its type fits.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::passed;

/// Types of files that are allowed for a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// A regular file.
    Regular,
    /// A regular file or a block device.
    Disk,
    /// A regular file or a pipe.
    Stream,
    /// Everything that can be written, also a FIFO with a reader, or a terminal.
    Output,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The file is read.
    Read,
    /// The file is read and written.
    ReadWrite,
    /// The file is created, or truncated, and written.
    Write,
    /// The file is created, or appended to.
    Append,
    /// The file is created, or truncated, and written and read.
    Rewrite,
}

impl Mode {
    fn options(self) -> OpenOptions {
        let mut options = File::options();
        options
            .read(!matches!(self, Self::Write | Self::Append))
            .write(self != Self::Read)
            .append(self == Self::Append);
        let emptied = matches!(self, Self::Write | Self::Rewrite);
        options.create(emptied || self == Self::Append).truncate(emptied);
        options
    }

    /// Returns why a descriptor with these flags does not fit the mode.
    fn refusal(self, open: OFlag) -> Option<&'static str> {
        match open & OFlag::O_ACCMODE {
            _ if open.contains(OFlag::O_PATH) => Some("it is open neither for reading nor for writing"),
            // pwrite(2) would write to the end, whatever the offset.
            _ if open.contains(OFlag::O_APPEND) && self == Self::ReadWrite => Some("it is open for appending"),
            OFlag::O_RDONLY if self != Self::Read => Some("it is open for reading only"),
            OFlag::O_WRONLY if !matches!(self, Self::Write | Self::Append) => Some("it is open for writing only"),
            _ => None,
        }
    }
}

/// Opens `path`, or takes the passed descriptor `fd:N` or `fd:NAME`.
///
/// # Errors
/// The errors of [`open_path`]; or the passed descriptor is open in another way than `mode` needs.
pub fn open(path: &Path, mode: Mode, fit: Fit) -> io::Result<File> {
    let Some(reference) = passed::reference(path) else { return open_path(path, mode, fit) };
    let file = File::from(passed::descriptor(reference)?);
    let flags = check_passed(&file, mode, fit)?;
    waits(&file, flags)?;
    Ok(file)
}

/// Takes a passed regular file or pipe, and makes its reads and writes non-blocking.
///
/// # Errors
/// The descriptor is no such file, or is open in another way than `mode` needs.
pub fn take_stream(file: &File, mode: Mode) -> io::Result<()> {
    let flags = check_passed(file, mode, Fit::Stream)?;
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Checks that a passed descriptor is a disk image that can be read and written.
///
/// # Errors
/// The descriptor is no such file, or is open in another way.
pub fn check_disk(file: &File) -> io::Result<()> {
    check_passed(file, Mode::ReadWrite, Fit::Disk).map(drop)
}

/// Checks that a passed descriptor fits its use; returns the flags with which it is open.
fn check_passed(file: &File, mode: Mode, fit: Fit) -> io::Result<OFlag> {
    check(file, fit)?;
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    match mode.refusal(flags) {
        Some(why) => Err(io::Error::other(why)),
        None => Ok(flags),
    }
}

/// Opens `path`.
///
/// # Errors
/// The system's; or the file is of another type than its use needs.
pub fn open_path(path: &Path, mode: Mode, fit: Fit) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = mode.options().custom_flags(flags.bits()).open(path).map_err(|error| match Errno::try_from(error) {
        Ok(Errno::ENXIO) => unanswered(path),
        Ok(errno) => errno.into(),
        Err(error) => error,
    })?;
    check(&file, fit)?;
    // Non-blocking mode was for the open only.
    waits(&file, OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?))?;
    Ok(file)
}

/// Explains why opening `path` failed with ENXIO.
fn unanswered(path: &Path) -> io::Error {
    match path.metadata().map(|metadata| metadata.file_type()) {
        // fifo(7): a non-blocking open for writing fails while no process has the FIFO open for reading.
        Ok(kind) if kind.is_fifo() => io::Error::other("no process reads from the pipe"),
        Ok(kind) if kind.is_socket() => io::Error::other(format!("it is {}", name(kind))),
        _ => Errno::ENXIO.into(),
    }
}

/// Makes writes wait for room, as a pipe or a terminal may need.
fn waits(file: &File, flags: OFlag) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

fn check(file: &File, fit: Fit) -> io::Result<()> {
    let kind = file.metadata()?.file_type();
    let fits = match fit {
        Fit::Regular => kind.is_file(),
        Fit::Disk => kind.is_file() || kind.is_block_device(),
        Fit::Stream => kind.is_file() || kind.is_fifo(),
        Fit::Output => !kind.is_dir(),
    };
    if fits { Ok(()) } else { Err(io::Error::other(format!("it is {}", name(kind)))) }
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
    } else if kind.is_socket() {
        "a socket"
    } else {
        "no file"
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use nix::sys::stat;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn files_are_opened_by_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let [file, fifo, socket] = ["file", "fifo", "socket"].map(|name| directory.path().join(name));
        std::fs::write(&file, "text").unwrap();
        mkfifo(&fifo, stat::Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        let read = |path: &Path, fit| open(path, Mode::Read, fit);
        let refusal = |path: &Path, fit| read(path, fit).unwrap_err().to_string();
        for fit in [Fit::Regular, Fit::Disk] {
            assert!(read(&file, fit).is_ok());
            assert_eq!(refusal(&fifo, fit), "it is a FIFO");
            assert_eq!(refusal(&socket, fit), "it is a socket");
            assert_eq!(refusal(Path::new("/dev/null"), fit), "it is a character device");
            assert_eq!(refusal(directory.path(), fit), "it is a directory");
        }
        assert_eq!(read(&directory.path().join("none"), Fit::Regular).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// The flags are the kernel's, of real open files.
    #[test]
    fn what_is_open_in_another_way_than_its_use_needs_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "text").unwrap();
        let open = |options: &mut OpenOptions| {
            let file = options.open(&path).unwrap();
            OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap())
        };
        let read = open(File::options().read(true));
        let write = open(File::options().write(true));
        let both = open(File::options().read(true).write(true));
        let append = open(File::options().read(true).append(true));
        let place = open(File::options().read(true).custom_flags(OFlag::O_PATH.bits()));
        let (reads, writes) = (Some("it is open for reading only"), Some("it is open for writing only"));
        let nothing = Some("it is open neither for reading nor for writing");
        for (mode, answers) in [
            (Mode::Read, [None, writes, None, None, nothing]),
            (Mode::ReadWrite, [reads, writes, None, Some("it is open for appending"), nothing]),
            (Mode::Write, [reads, None, None, None, nothing]),
        ] {
            assert_eq!([read, write, both, append, place].map(|flags| mode.refusal(flags)), answers, "{mode:?}");
        }
    }

    /// A FIFO is written to as after a usual open: a write waits for room.
    #[test]
    fn a_fifo_takes_output_once_somebody_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, stat::Mode::S_IRWXU).unwrap();
        let write = || open(&fifo, Mode::Write, Fit::Output);
        assert_eq!(write().unwrap_err().to_string(), "no process reads from the pipe");
        let flags = OFlag::O_NONBLOCK.bits();
        let reader = File::options().read(true).custom_flags(flags).open(&fifo).unwrap();
        let mut writer = write().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&[7; 1 << 20]));
        let mut taken = 0;
        while taken < 1 << 20 {
            // A read may find nothing for a moment.
            taken += (&reader).read(&mut [0; 4096]).unwrap_or(0);
        }
        writing.join().unwrap().unwrap();
    }
}
