//! A network without other members.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;

use minivmm::devices::virtio::net::{Backend, Offloads};

/// One end of a socket pair whose other end is silent.
#[derive(Debug)]
pub struct Unplugged {
    near: UnixDatagram,
    _far: UnixDatagram,
}

impl Unplugged {
    pub(super) fn new() -> io::Result<Self> {
        let (near, far) = UnixDatagram::pair()?;
        near.set_nonblocking(true)?;
        Ok(Self { near, _far: far })
    }
}

impl Backend for Unplugged {
    fn fd(&self) -> RawFd {
        self.near.as_raw_fd()
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.near.recv(frame)
    }

    fn send(&self, _frame: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}
