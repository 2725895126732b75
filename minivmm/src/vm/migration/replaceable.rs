//! The main channel of a migration: its connection is replaced when it breaks in post-copy, and a second connection is made on request.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::Sender;
use std::time::Duration;

use vmstate::channel::tls::Connection;
use vmstate::channel::{Channel, SocketChannel};
use vmstate::codec::{Outbox, PageRun};
use vmstate::ram::GuestRam;

use super::connector::Secure;
use crate::config::Address;
use crate::vm::request::Refusal;

/// Address at which a source reconnects.
pub(super) struct Reconnection {
    pub(super) address: Address,
    /// TLS for the connection, if it is set.
    pub(super) secure: Option<Secure>,
    /// Connection, if it was passed.
    pub(super) connected: Option<SocketChannel>,
}

/// Request of a client that a destination also waits for its source at an address; answered once the machine listens there.
pub(in crate::vm) struct Recovery {
    pub(in crate::vm) at: Address,
    pub(in crate::vm) answer: Sender<Result<(), Refusal>>,
}

/// Makes further connections of a migration.
pub(super) trait Connections {
    /// Returns a connection that replaces the main channel's, which broke because of `why`; `None` if there will be none.
    fn replace(&mut self, why: &vmstate::Error) -> Option<Connection>;

    /// Returns the second connection, for pages requested in post-copy: a source connects, a destination returns the one that it has accepted.
    ///
    /// # Errors
    /// The source cannot connect.
    fn urgent(&mut self) -> io::Result<Option<Connection>>;
}

/// For a migration that has only one connection.
pub(super) struct NoOthers;

impl Connections for NoOthers {
    fn replace(&mut self, _why: &vmstate::Error) -> Option<Connection> {
        None
    }

    fn urgent(&mut self) -> io::Result<Option<Connection>> {
        Ok(None)
    }
}

/// A connection, and the maker of further connections.
pub(super) struct Replaceable<'a> {
    /// `None` while another connection is awaited.
    connection: Option<Connection>,
    others: &'a mut dyn Connections,
}

impl<'a> Replaceable<'a> {
    pub(super) fn new(connection: Connection, others: &'a mut dyn Connections) -> Self {
        Self { connection: Some(connection), others }
    }

    /// Returns the connection that is left open.
    pub(super) fn into_connection(self) -> Option<Connection> {
        self.connection
    }

    fn connection(&mut self) -> io::Result<&mut Connection> {
        self.connection.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Channel for Replaceable<'_> {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().and_then(Channel::descriptor)
    }

    fn shorten_queue(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.shorten_queue();
        }
    }

    fn urgent(&mut self) -> io::Result<Option<Box<dyn Channel>>> {
        Ok(self.others.urgent()?.map(|connection| Box::new(connection) as Box<dyn Channel>))
    }

    fn send(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<usize> {
        self.connection()?.send(bytes, timeout)
    }

    fn send_outbox(&mut self, outbox: &Outbox, ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        self.connection()?.send_outbox(outbox, ram, timeout)
    }

    fn receive(&mut self, into: &mut [u8], timeout: Duration) -> io::Result<usize> {
        self.connection()?.receive(into, timeout)
    }

    fn receive_pages(&mut self, runs: &[PageRun], ram: &dyn GuestRam, timeout: Duration) -> io::Result<usize> {
        self.connection()?.receive_pages(runs, ram, timeout)
    }

    fn reconnect(&mut self, why: &vmstate::Error) -> io::Result<()> {
        // The other side notices that the old connection is closed.
        self.connection = None;
        self.connection = self.others.replace(why);
        self.connection().map(drop)
    }
}
