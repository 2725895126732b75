//! Migrations over passed descriptors: over a socket to the other side; or into a pipe or a file, without answers, like a
//! migration to a file that minivmm opens itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use socket2::SockRef;
use vmstate::channel::tls::TlsServer;
use vmstate::channel::{Listener, SocketChannel};

use super::incoming::Origin;
use super::state_file::{NOT_ENCRYPTED, StateFile};
use crate::config::{Address, Descriptor};
use crate::devices::virtio::blk::Image;
use crate::files::Mode;

/// Why an address `exec:` is refused.
pub(super) const NO_PROGRAMS: &str = "a machine that runs starts no programs: minivmm migrate does, and run --incoming at its start; \
     other clients start theirs, pass a socket to it with getfd, and name that: fd:NAME";

const FITTING: &str = "pass a stream socket, a pipe, or a regular file";

/// Way of an outgoing migration to its address.
pub(super) enum Way {
    /// A new connection.
    Connect,
    /// A passed connection.
    Connected(SocketChannel),
    /// A file or a pipe.
    File(StateFile),
}

impl Way {
    /// Returns the way to `address`, and opens the file if it names one, for direct I/O if `direct` is true. The machine's disks,
    /// `images`, are refused.
    ///
    /// # Errors
    /// The reason, as a sentence for the user.
    pub(super) fn to(address: &Address, images: &[Arc<Image>], direct: bool) -> Result<Self, String> {
        match address {
            Address::File { path, offset } => StateFile::create(path, *offset, direct).map(Self::File),
            Address::Exec(_) => Err(NO_PROGRAMS.into()),
            Address::Descriptor { passed, .. } => {
                let refused = |error: io::Error| format!("{address}: {error}; {FITTING}");
                let file = duplicate(passed.as_ref()).map_err(refused)?;
                if is_socket(&file).map_err(refused)? {
                    return connected(&file).map(Self::Connected).map_err(refused);
                }
                if let Some(index) = own_disk(&file, images) {
                    return Err(format!(
                        "{address}: it is disk {} of this machine; give the guest's state a file of its own",
                        index + 1
                    ));
                }
                StateFile::passed(file, Mode::Write, &address.to_string()).map(Self::File).map_err(refused)
            }
            Address::Unix(_) | Address::Local(_) | Address::Tcp(_) | Address::Vsock { .. } => Ok(Self::Connect),
        }
    }
}

/// Returns the origin of a guest that comes over `passed`, or that is in it; the user knows it as `name`.
///
/// # Errors
/// The reason, as a sentence for the user.
pub(super) fn origin(name: &str, passed: Option<&Descriptor>, server: Option<TlsServer>) -> Result<Origin, String> {
    let refused = |error: io::Error| format!("{name}: {error}; {FITTING}");
    let file = duplicate(passed).map_err(refused)?;
    if !is_socket(&file).map_err(refused)? {
        return match server {
            Some(_) => Err(NOT_ENCRYPTED.into()),
            None => StateFile::passed(file, Mode::Read, name).map(Origin::File).map_err(refused),
        };
    }
    if SockRef::from(&file).is_listener().map_err(refused)? {
        let listener = Listener::listening(file).map_err(refused)?;
        return Ok(Origin::Listener(listener.with_tls(server)));
    }
    connected(&file).map(|socket| Origin::Connection(socket, server)).map_err(refused)
}

/// Duplicates the descriptor as a file, since its later user may not make all system calls.
fn duplicate(passed: Option<&Descriptor>) -> io::Result<File> {
    let passed = passed.ok_or_else(|| io::Error::other("no descriptor of this name was passed"))?;
    passed.duplicate().map(File::from)
}

fn is_socket(file: &File) -> io::Result<bool> {
    file.metadata().map(|metadata| metadata.file_type().is_socket())
}

/// Index of the machine's disk that `file` is, if it is one.
fn own_disk(file: &File, images: &[Arc<Image>]) -> Option<usize> {
    images.iter().position(|image| image.is_same(file).unwrap_or(false))
}

fn connected(file: &File) -> io::Result<SocketChannel> {
    SocketChannel::connected(file.try_clone()?)
}
