//! A connection as it is created or accepted: a socket, or TLS on one.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::TlsChannel;
use crate::channel::{Channel, SocketChannel};
use crate::codec::{Outbox, PageRun};
use crate::ram::GuestRam;

/// A socket, or TLS on one.
#[derive(Debug)]
pub enum Connection {
    /// Unencrypted: anyone on the network path can read and change the data.
    Plain(SocketChannel),
    /// Encrypted.
    Tls(Box<TlsChannel<SocketChannel>>),
}

impl From<SocketChannel> for Connection {
    fn from(socket: SocketChannel) -> Self {
        Self::Plain(socket)
    }
}

impl From<TlsChannel<SocketChannel>> for Connection {
    fn from(channel: TlsChannel<SocketChannel>) -> Self {
        Self::Tls(Box::new(channel))
    }
}

impl Connection {
    fn channel(&mut self) -> &mut dyn Channel {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(channel) => &mut **channel,
        }
    }

    /// Copies the first bytes that have arrived to `into`; they can still be received. Advances a TLS handshake as far as
    /// possible without waiting.
    ///
    /// # Errors
    /// As for [`receive`](Channel::receive).
    pub(in crate::channel) fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.peek(into),
            Self::Tls(channel) => channel.peek(into),
        }
    }
}

impl Channel for Connection {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Plain(socket) => socket.descriptor(),
            Self::Tls(channel) => channel.descriptor(),
        }
    }

    fn shorten_queue(&mut self) {
        self.channel().shorten_queue();
    }

    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.channel().send(bytes, timeout)
    }

    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        self.channel().send_outbox(outbox, ram, timeout)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.channel().receive(into, timeout)
    }

    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        self.channel().receive_pages(runs, ram, timeout)
    }
}
