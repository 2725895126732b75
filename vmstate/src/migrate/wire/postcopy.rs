//! The channel in post-copy: requests for pages at the destination, the second connection for requested pages at both sides, and the
//! replacement of a broken connection.

use std::time::Duration;

use super::{Link, SLICE, Timeout, is_timeout, timed_out};
use crate::channel::{Wanted, wait_for_any};
use crate::codec::Outbox;
use crate::error::{Error, Result};
use crate::migrate::postcopy_ram::PostcopyRam;
use crate::migrate::urgent::{IncomingUrgent, OutgoingUrgent};
use crate::ram::PageCount;

/// Interval of checks where there is no descriptor to wait for.
const CHECK_INTERVAL: Duration = Duration::from_millis(1);

impl Link<'_> {
    /// True if the guest may be waiting for a page.
    pub(super) fn listens(&self) -> bool {
        self.memory.is_some_and(PostcopyRam::listens)
    }

    /// Sets the time of the pages that arrive until the next call.
    pub(super) fn update_time(&self) {
        if let Some(memory) = self.memory {
            memory.set_time(self.clock.now());
        }
    }

    /// Requests the pages that the guest waits for, as far as the channel accepts the requests without waiting.
    pub(super) fn ask_for_pages(&mut self) -> Result<()> {
        let Some(memory) = self.memory.filter(|_| !self.is_unidentified) else { return Ok(()) };
        memory.set_time(self.clock.now());
        memory.put_requests(self.requests.bytes_mut())?;
        let mut requests = std::mem::take(&mut self.requests);
        if !requests.is_empty() {
            self.send_part(&mut requests, None, Duration::ZERO)?;
            self.requests = requests;
        }
        Ok(())
    }

    /// Requests the pages for which accesses have begun to wait, and places those that have arrived on the second connection, without
    /// waiting. Called while a long part of the stream is read.
    pub(in crate::migrate) fn serve_waits(&mut self) -> Result<()> {
        if !self.listens() {
            return Ok(());
        }
        self.ask_for_pages()?;
        self.take_urgent()
    }

    /// Receives bytes within `slice`. Returns a timeout early when the guest begins to wait for a page, or when the second connection has
    /// received one.
    pub(super) fn receive_or_fault(&mut self, slice: Duration) -> Result<()> {
        let faults = self.memory.and_then(PostcopyRam::descriptor);
        if self.channel.descriptor().is_none() || faults.is_none() {
            return self.receive_within(slice.min(CHECK_INTERVAL));
        }
        // Bytes that are already decrypted make no descriptor readable.
        match self.receive_within(Duration::ZERO) {
            Err(error) if is_timeout(&error) && !slice.is_zero() => {}
            result => return result,
        }
        let to_send = !self.requests.is_empty();
        let main = self.channel.descriptor().map(|descriptor| Wanted { descriptor, to_receive: true, to_send });
        let urgent = self.incoming_urgent.as_ref().and_then(IncomingUrgent::descriptor);
        let others = [faults, urgent].into_iter().flatten();
        let others = others.map(|descriptor| Wanted { descriptor, to_receive: true, to_send: false });
        let wanted: Vec<_> = main.into_iter().chain(others).collect();
        // No descriptor becomes readable when the source makes the second connection.
        let slice = if self.incoming_urgent.is_some() { slice } else { slice.min(CHECK_INTERVAL) };
        wait_for_any(&wanted, slice)?;
        self.receive_within(Duration::ZERO)
    }

    /// Places the pages that have arrived on the second connection. A connection that fails before its first page is not the source's, and
    /// is dropped.
    pub(super) fn take_urgent(&mut self) -> Result<()> {
        let Some(memory) = self.memory.filter(|memory| memory.listens() && !self.is_unidentified) else {
            return Ok(());
        };
        if self.incoming_urgent.is_none() && self.clock.now() >= self.urgent_look {
            self.urgent_look = self.clock.now().saturating_add(CHECK_INTERVAL);
            let channel = self.channel.urgent()?;
            self.incoming_urgent = channel.map(|channel| IncomingUrgent::new(channel, memory));
        }
        let Some(urgent) = &mut self.incoming_urgent else { return Ok(()) };
        let taken = urgent.take(self.strictness, self.limits);
        let (pages, bytes) = urgent.take_figures();
        self.urgent = (self.urgent.0.and(pages), self.urgent.1 + bytes);
        match taken {
            Ok(false) => {}
            Ok(true) => self.incoming_urgent = None,
            Err(error) if !urgent.has_begun() => {
                tracing::warn!("a second connection was dropped because it does not carry requested pages: {error}");
                self.incoming_urgent = None;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Waits for the pages that are still in flight on the second connection after the end of the stream.
    ///
    /// # Errors
    /// A timeout if the pages do not arrive; the connection is broken.
    pub(in crate::migrate) fn await_urgent(&mut self, timeout: Timeout) -> Result<()> {
        let deadline = self.deadline(timeout);
        loop {
            self.check()?;
            self.serve_waits()?;
            let Some(memory) = self.memory.filter(|memory| memory.lacks()) else { return Ok(()) };
            // Without a second connection, missing pages are an error of the stream, which `PostcopyRam::end` reports.
            let Some(urgent) = &self.incoming_urgent else { return Ok(()) };
            let slice = self.left(deadline).min(SLICE);
            if slice.is_zero() {
                return Err(timed_out("requested pages do not arrive on the second connection"));
            }
            match (urgent.descriptor(), memory.descriptor()) {
                (Some(urgent), Some(faults)) => {
                    let wanted =
                        [urgent, faults].map(|descriptor| Wanted { descriptor, to_receive: true, to_send: false });
                    wait_for_any(&wanted, slice)?;
                }
                _ => self.clock.sleep(slice.min(CHECK_INTERVAL)),
            }
        }
    }

    /// Number of pages that arrived on second connections.
    pub(in crate::migrate) fn urgent_pages(&self) -> PageCount {
        self.urgent.0
    }

    /// Keeps the source's send queue short.
    pub(in crate::migrate) fn shorten_queue(&mut self) {
        self.channel.shorten_queue();
    }

    /// Makes the source's second connection; false if the channel supports only one.
    ///
    /// # Errors
    /// The source cannot connect.
    pub(in crate::migrate) fn open_urgent(&mut self) -> Result<bool> {
        self.outgoing_urgent = self.channel.urgent()?.map(OutgoingUrgent::new);
        Ok(self.outgoing_urgent.is_some())
    }

    /// Outbox of the source's second connection, if there is one.
    pub(in crate::migrate) fn urgent_outbox(&mut self) -> Option<&mut Outbox> {
        self.outgoing_urgent.as_mut().map(|urgent| &mut urgent.outbox)
    }

    /// Sends what both of the source's connections accept without waiting, requested pages first, then `others` on the main channel; true if
    /// nothing is left.
    ///
    /// # Errors
    /// A timeout at `deadline`; a connection is broken.
    pub(in crate::migrate) fn send_both(&mut self, others: &mut Outbox, deadline: Duration) -> Result<bool> {
        self.send_urgent()?;
        let is_urgent_left = self.outgoing_urgent.as_ref().is_some_and(|urgent| !urgent.outbox.is_empty());
        if !others.is_empty() {
            self.send_part(others, Some(deadline), Duration::ZERO)?;
        } else if is_urgent_left && self.left(Some(deadline)).is_zero() {
            return Err(timed_out("the peer accepts none of the pages that it has requested"));
        }
        Ok(!is_urgent_left && others.is_empty())
    }

    /// Sends what the source's second connection accepts without waiting.
    ///
    /// # Errors
    /// Guest memory cannot be read; the connection is broken.
    pub(in crate::migrate) fn send_urgent(&mut self) -> Result<()> {
        if let Some(urgent) = &mut self.outgoing_urgent {
            self.sent += urgent.send(self.ram)?;
        }
        Ok(())
    }

    /// Waits within `slice` until the source can receive, send requested pages, or, if `to_send`, send on the main channel.
    ///
    /// # Errors
    /// poll(2) fails.
    pub(in crate::migrate) fn await_room(&mut self, to_send: bool, slice: Duration) -> Result<()> {
        let Some(descriptor) = self.channel.descriptor() else {
            self.clock.sleep(slice.min(CHECK_INTERVAL));
            return Ok(());
        };
        let mut wanted = vec![Wanted { descriptor, to_receive: true, to_send }];
        let urgent = self.outgoing_urgent.as_ref().filter(|urgent| !urgent.outbox.is_empty());
        let descriptor = urgent.and_then(OutgoingUrgent::descriptor);
        wanted.extend(descriptor.map(|descriptor| Wanted { descriptor, to_receive: false, to_send: true }));
        wait_for_any(&wanted, slice)?;
        Ok(())
    }

    /// Waits for another connection to replace this one, which was lost because of `why`.
    ///
    /// # Errors
    /// No other connection will be made; errors of guest memory.
    pub(in crate::migrate) fn reconnect(&mut self, why: &Error) -> Result<()> {
        (self.outgoing_urgent, self.incoming_urgent) = (None, None);
        self.memory.map_or(Ok(()), PostcopyRam::store_zeros)?;
        self.channel.reconnect(why)?;
        self.base = self.offset();
        (self.start, self.end) = (0, 0);
        self.requests = Outbox::new();
        self.is_unidentified = true;
        self.control.connected();
        Ok(())
    }

    /// Allows requests again over another connection, and repeats those whose pages have not arrived.
    ///
    /// # Errors
    /// Errors of guest memory.
    pub(in crate::migrate) fn ask_again(&mut self) -> Result<()> {
        self.is_unidentified = false;
        self.memory.map_or(Ok(()), |memory| memory.ask_again(self.requests.bytes_mut()))
    }
}
