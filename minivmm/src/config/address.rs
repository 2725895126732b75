//! The address of a migration as text: a socket, or a file and a place in it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a migration goes to, or is awaited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:PATH`
    Unix(PathBuf),
    /// `tcp:HOST:PORT`
    Tcp(String),
    /// `file:PATH` or `file:PATH,offset=N`
    File {
        /// The file.
        path: PathBuf,
        /// Where in it the stream begins, in bytes.
        offset: u64,
    },
}

const KINDS: &str = "write unix:PATH, tcp:HOST:PORT or file:PATH[,offset=N]";

/// What is before the offset (migration/file.c of QEMU).
const OFFSET: &str = ",offset=";

impl FromStr for Address {
    type Err = String;

    /// Reads `unix:PATH`, `tcp:HOST:PORT` or `tcp:[IPV6]:PORT`, without HOST it is 127.0.0.1; `file:PATH[,offset=N]`. The error is a
    /// sentence for the user.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", peer)) => match peer.rsplit_once(':') {
                // QEMU would listen at all addresses of the host then.
                Some(("", port)) if port.parse::<u16>().is_ok() => Ok(Self::Tcp(format!("127.0.0.1:{port}"))),
                Some((_, port)) if port.parse::<u16>().is_ok() => Ok(Self::Tcp(peer.into())),
                _ => Err(format!("'{text}' lacks a host or a port of 0 to 65535; write tcp:HOST:PORT")),
            },
            Some(("file", file)) => {
                let (path, offset) = match file.rsplit_once(OFFSET) {
                    Some((path, offset)) => (path, size(offset)),
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
            Some(("fd", _)) => Err(format!("'{text}' is a descriptor, and a machine that runs takes none; {KINDS}")),
            _ => Err(format!("'{text}' is no address; {KINDS}")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(peer) => write!(f, "tcp:{peer}"),
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

/// Bytes as QEMU's `qemu_strtosz` reads them (util/cutils.c), without a fraction: decimal with a unit or without, or hexadecimal
/// without. Not more than a file's offset may be.
fn size(text: &str) -> Option<u64> {
    let (digits, radix, shift) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16, 0),
        None => match text.chars().last().and_then(|last| "bkmgtpe".find(last.to_ascii_lowercase())) {
            Some(power) => (text.get(..text.len() - 1)?, 10, 10 * power),
            None => (text, 10, 0),
        },
    };
    // The standard library would take a sign.
    let number =
        digits.chars().all(|digit| digit.is_digit(radix)).then(|| u64::from_str_radix(digits, radix).ok())??;
    number.checked_mul(1 << shift).filter(|&bytes| i64::try_from(bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            // As the channel of a file whose name looks so.
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
