//! Address of a migration as text: a socket, a command, a place in a file, or a passed descriptor.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::size::size;

/// Destination or source of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:PATH`
    Unix(PathBuf),
    /// `local:PATH`: a unix socket over which a machine on this host hands over its memory itself instead of a copy.
    Local(PathBuf),
    /// `tcp:HOST:PORT`
    Tcp(String),
    /// `vsock:CID:PORT`
    Vsock {
        /// The virtual machine or host.
        cid: u32,
        /// Port of the address.
        port: u32,
    },
    /// `exec:COMMAND`: a shell command whose standard input and output are the connection.
    Exec(String),
    /// `fd:NAME`
    Descriptor {
        /// Name of the descriptor.
        name: String,
        /// The descriptor itself, once its owner has put it in.
        passed: Option<Descriptor>,
    },
    /// `file:PATH` or `file:PATH,offset=N`
    File {
        /// The file.
        path: PathBuf,
        /// Offset of the stream in the file, in bytes.
        offset: u64,
    },
}

impl Address {
    /// Whether a migration to this address stays on this host, in a file or between two processes: TLS is for other addresses
    /// only.
    pub fn stays_on_this_host(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Local(_))
    }
}

const KINDS: &str =
    "write unix:PATH, tcp:HOST:PORT, vsock:CID:PORT, local:PATH, exec:COMMAND, fd:NAME or file:PATH[,offset=N]";

/// Separator before the offset (migration/file.c of QEMU).
const OFFSET: &str = ",offset=";

impl FromStr for Address {
    type Err = String;

    /// Reads `unix:PATH`, `tcp:HOST:PORT` or `tcp:[IPV6]:PORT`, without HOST it is 127.0.0.1; `vsock:CID:PORT`, `exec:COMMAND`, `fd:NAME`,
    /// `file:PATH[,offset=N]`. The error is a sentence for the user.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("local", path)) if !path.is_empty() => Ok(Self::Local(path.into())),
            Some(("tcp", peer)) => match peer.rsplit_once(':') {
                // QEMU would listen at all addresses of the host.
                Some(("", port)) if port.parse::<u16>().is_ok() => Ok(Self::Tcp(format!("127.0.0.1:{port}"))),
                Some((_, port)) if port.parse::<u16>().is_ok() => Ok(Self::Tcp(peer.into())),
                _ => Err(format!("'{text}' lacks a host or a port of 0 to 65535; write tcp:HOST:PORT")),
            },
            Some(("file", file)) => {
                let (path, offset) = match file.rsplit_once(OFFSET) {
                    Some((path, offset)) => (path, size(offset, 1).ok().filter(|&bytes| i64::try_from(bytes).is_ok())),
                    None => (file, Some(0)),
                };
                match offset {
                    Some(offset) if !path.is_empty() => Ok(Self::File { path: path.into(), offset }),
                    Some(_) => Err(format!("'{text}' lacks a path; write file:PATH or file:PATH,offset=N")),
                    None => Err(format!(
                        "'{text}' has a bad offset; write a whole number of bytes below 8E, as 4096, 0x1000, 64K or 1M"
                    )),
                }
            }
            Some(("vsock", peer)) => {
                let numbers =
                    peer.split_once(':').and_then(|(cid, port)| Some((cid.parse().ok()?, port.parse().ok()?)));
                let (cid, port) = numbers.ok_or_else(|| format!("'{text}' lacks two numbers; write vsock:CID:PORT"))?;
                Ok(Self::Vsock { cid, port })
            }
            Some(("exec", command)) if !command.is_empty() => Ok(Self::Exec(command.into())),
            Some(("fd", name)) if !name.is_empty() => Ok(Self::Descriptor { name: name.into(), passed: None }),
            _ => Err(format!("'{text}' is no address; {KINDS}")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Local(path) => write!(f, "local:{}", path.display()),
            Self::Tcp(peer) => write!(f, "tcp:{peer}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Exec(command) => write!(f, "exec:{command}"),
            Self::Descriptor { name, .. } => write!(f, "fd:{name}"),
            Self::File { path, offset } => {
                let path = path.display().to_string();
                match offset {
                    0 if !path.contains(OFFSET) => write!(f, "file:{path}"),
                    _ => write!(f, "file:{path}{OFFSET}{offset}"),
                }
            }
        }
    }
}

/// A passed descriptor. Clones share it.
#[derive(Clone, Debug)]
pub struct Descriptor(Arc<OwnedFd>);

impl Descriptor {
    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(passed: OwnedFd) -> Self {
        Self(passed.into())
    }
}

impl PartialEq for Descriptor {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Descriptor {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        let descriptor = |name: &str| Ok(Address::Descriptor { name: name.into(), passed: None });
        for (text, address) in [
            ("vsock:2:1234", Ok(Address::Vsock { cid: 2, port: 1234 })),
            ("local:/run/vm/update", Ok(Address::Local("/run/vm/update".into()))),
            ("vsock:4294967295:1", Ok(Address::Vsock { cid: u32::MAX, port: 1 })),
            ("exec:ssh b 'socat - UNIX:/x'", Ok(Address::Exec("ssh b 'socat - UNIX:/x'".into()))),
            ("fd:move", descriptor("move")),
            ("fd:7", descriptor("7")),
        ] {
            assert_eq!(text.parse::<Address>(), address, "{text}");
            assert_eq!(address.unwrap().to_string(), text);
        }
        for text in ["vsock:2", "vsock:2:", "vsock::1", "vsock:4294967296:1", "local:", "exec:", "fd:", "rdma:x:1", ""]
        {
            text.parse::<Address>().unwrap_err();
        }
    }

    /// The numbers are from QEMU's documentation of `qemu_strtosz` and its tests (tests/unit/test-cutils.c).
    #[test]
    fn a_file_has_a_path_and_an_offset() {
        let file = |path: &str, offset| Ok(Address::File { path: path.into(), offset });
        for (text, address, shown) in [
            ("file:/a/b", file("/a/b", 0), "file:/a/b"),
            ("file:a:b,c", file("a:b,c", 0), "file:a:b,c"),
            ("file:a,offset=0", file("a", 0), "file:a"),
            ("file:a,offset=4096", file("a", 4096), "file:a,offset=4096"),
            ("file:a,offset=0x1f", file("a", 31), "file:a,offset=31"),
            ("file:a,offset=12345B", file("a", 12345), "file:a,offset=12345"),
            ("file:a,offset=1k", file("a", 1 << 10), "file:a,offset=1024"),
            ("file:a,offset=1M", file("a", 1 << 20), "file:a,offset=1048576"),
            ("file:a,offset=1E", file("a", 1 << 60), "file:a,offset=1152921504606846976"),
            // QEMU prints the channel of such a file like this.
            ("file:a,offset=1,offset=0", file("a,offset=1", 0), "file:a,offset=1,offset=0"),
            ("file:a,offset=1,offset=2", file("a,offset=1", 2), "file:a,offset=1,offset=2"),
        ] {
            assert_eq!(text.parse::<Address>(), address, "{text}");
            assert_eq!(address.unwrap().to_string(), shown);
        }
        for offset in ["", "-1", "+1", "x", "0x", "0x20M", "8E", "0x8000000000000000", "1MM", "M", "1µ"] {
            let error = format!("file:a,offset={offset}").parse::<Address>().unwrap_err();
            assert!(error.contains("has a bad offset"), "{error}");
        }
        for text in ["file:", "file:,offset=1"] {
            assert!(text.parse::<Address>().unwrap_err().contains("lacks a path"), "{text}");
        }
    }
}
