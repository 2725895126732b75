//! Connecting and accepting that can be given up, until the library offers them.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vmstate::channel::{Listener, SocketChannel};

const STEP: Duration = Duration::from_millis(10);

pub(super) fn connect_unix(path: &Path, timeout: Duration, go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
    use std::os::fd::AsRawFd;
    let until = Instant::now() + timeout;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    loop {
        match connect(fd.as_raw_fd(), &UnixAddr::new(path)?) {
            Ok(()) => break,
            Err(nix::errno::Errno::EAGAIN) if Instant::now() > until => return Err(io::ErrorKind::TimedOut.into()),
            Err(nix::errno::Errno::EAGAIN) if go_on() => std::thread::sleep(STEP),
            Err(nix::errno::Errno::EAGAIN) => return Err(io::ErrorKind::Interrupted.into()),
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.try_into()
}

pub(super) fn connect_tcp(address: &str, timeout: Duration, _go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
    let _ = TcpStream::connect::<&str>;
    SocketChannel::connect_tcp(address, timeout)
}

pub(super) fn accept_source(listener: &Listener, go_on: &dyn Fn() -> bool) -> io::Result<SocketChannel> {
    loop {
        match listener.accept(Some(STEP)) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && go_on() => {}
            result => return result,
        }
    }
}
