//! Connections that a listener has accepted and not yet returned, sorted by their first bytes.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use crate::ram::multifd::packet::MAGIC_BYTES;

/// The first bytes of a stream (`QEMU_VM_FILE_MAGIC`, migration/savevm.c).
pub(super) const MAGIC: [u8; 4] = *b"QEVM";
/// The first bytes of a source that resumes post-copy over another connection (`qemu_savevm_send_recv_bitmap`,
/// `qemu_savevm_send_postcopy_resume`, migration/savevm.c): the byte of a command, and the number of one of these two commands.
const RESUMES: [[u8; 3]; 2] = [[8, 0, 10], [8, 0, 9]];
/// The first bytes of a connection for pages requested in post-copy: the upper bytes of a page's offset in its block, which has less than
/// 256 TiB (`save_page_header`, migration/ram.c).
const URGENT: [u8; 2] = [0, 0];
/// The first byte of a TLS client (`ContentType`, RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// The most connections that have not sent anything yet; when another comes, the oldest is dropped.
pub(super) const CANDIDATES: u8 = 16;
/// The most connections of each kind that are kept for a caller: a migration has up to 255 page channels.
const KEPT: usize = 255;
/// A connection that has not begun a stream within this time is dropped.
const IDENTIFICATION: Duration = Duration::from_secs(10);
/// How long a connection stays open after a refusal with a message: closing it at once would lose the message if the peer has
/// sent anything since.
const CLOSE_DELAY: Duration = Duration::from_secs(1);

/// Connections that were accepted and not yet returned to a caller.
pub(super) struct Waiters<C> {
    /// Connections that have sent nothing yet, with the time of their acceptance.
    pub(super) candidates: Vec<(C, Instant)>,
    pub(super) streams: VecDeque<C>,
    pub(super) pages: VecDeque<C>,
    /// Sources that resume post-copy, with the time of their first bytes. Only a destination that waits for one takes them.
    pub(super) resuming: VecDeque<(C, Instant)>,
    /// Connections whose first record is a page requested in post-copy, with the time when it came.
    pub(super) urgent: VecDeque<(C, Instant)>,
    /// A destination waits for such a connection: connections that send nothing are kept.
    pub(super) awaits_urgent: bool,
    /// Connections that were refused with a message, with the time of the refusal.
    leaving: VecDeque<(C, Instant)>,
}

impl<C> Default for Waiters<C> {
    fn default() -> Self {
        Self {
            candidates: Vec::new(),
            streams: VecDeque::new(),
            pages: VecDeque::new(),
            resuming: VecDeque::new(),
            urgent: VecDeque::new(),
            awaits_urgent: false,
            leaving: VecDeque::new(),
        }
    }
}

impl<C> Waiters<C> {
    /// Adds a connection that was just accepted.
    pub(super) fn add(&mut self, connection: C) {
        if self.candidates.len() == usize::from(CANDIDATES) {
            self.candidates.remove(0);
        }
        self.candidates.push((connection, Instant::now()));
    }

    /// Sorts the candidates by their first bytes, and returns the reasons of refusals. Each candidate is peeked only once: it may
    /// send at any moment, so a second look might differ from the first.
    pub(super) fn sort(
        &mut self,
        peek: impl Fn(&mut C, &mut [u8]) -> io::Result<usize>,
        sends_reason: impl Fn(&C) -> bool,
    ) -> Vec<io::Error> {
        let awaits_urgent = self.awaits_urgent;
        self.candidates.retain(|(_, since)| awaits_urgent || since.elapsed() < IDENTIFICATION);
        self.urgent.retain(|(_, since)| since.elapsed() < IDENTIFICATION);
        self.resuming.retain(|(_, since)| since.elapsed() < IDENTIFICATION);
        self.leaving.retain(|(_, since)| since.elapsed() < CLOSE_DELAY);
        let mut refusals = Vec::new();
        let mut index = 0;
        while let Some((connection, _)) = self.candidates.get_mut(index) {
            let beginning = begins(|into| peek(connection, into));
            if matches!(beginning, Ok(Beginning::Silence)) {
                index += 1;
                continue;
            }
            let (connection, _) = self.candidates.remove(index);
            match beginning {
                Ok(Beginning::Stream) => keep(&mut self.streams, connection, KEPT),
                Ok(Beginning::Pages) => keep(&mut self.pages, connection, KEPT),
                Ok(Beginning::Resuming) => keep(&mut self.resuming, (connection, Instant::now()), CANDIDATES.into()),
                Ok(Beginning::Urgent) => keep(&mut self.urgent, (connection, Instant::now()), CANDIDATES.into()),
                Ok(Beginning::Silence | Beginning::Over) => {}
                Err(why) => {
                    refusals.push(why);
                    if sends_reason(&connection) {
                        keep(&mut self.leaving, (connection, Instant::now()), CANDIDATES.into());
                    }
                }
            }
        }
        refusals
    }
}

fn keep<T>(kept: &mut VecDeque<T>, one: T, most: usize) {
    if kept.len() == most {
        kept.pop_front();
    }
    kept.push_back(one);
}

/// How a connection has begun.
enum Beginning {
    /// With a stream.
    Stream,
    /// As a page channel.
    Pages,
    /// As a source that resumes post-copy.
    Resuming,
    /// With a page requested in post-copy.
    Urgent,
    /// Without enough bytes to decide.
    Silence,
    /// The connection has ended.
    Over,
}

/// Classifies a connection by its first bytes, without consuming them.
///
/// # Errors
/// Why the connection is refused.
fn begins(peek: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Beginning> {
    let mut first = [0; MAGIC.len()];
    let count = match peek(&mut first) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(Beginning::Silence),
        Ok(0) => return Ok(Beginning::Over),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
        Err(_) => return Ok(Beginning::Over),
        Ok(count) => count,
    };
    let first = first.get(..count).unwrap_or_default();
    let other = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    match first {
        _ if first == MAGIC => Ok(Beginning::Stream),
        _ if first == MAGIC_BYTES => Ok(Beginning::Pages),
        _ if RESUMES.iter().any(|resumes| first.starts_with(resumes)) => Ok(Beginning::Resuming),
        _ if first.starts_with(&URGENT) => Ok(Beginning::Urgent),
        _ if URGENT.starts_with(first) => Ok(Beginning::Silence),
        _ if MAGIC.starts_with(first) || MAGIC_BYTES.starts_with(first) => Ok(Beginning::Silence),
        _ if RESUMES.iter().any(|resumes| resumes.starts_with(first)) => Ok(Beginning::Silence),
        [HANDSHAKE, ..] => other("it speaks TLS, but this side was given no tls-creds"),
        _ => other("it begins neither with a stream nor as a page channel"),
    }
}
