//! Threads that send, receive, write or read pages: one for each page channel, on both sides of a migration; and several for the
//! places of pages in a file.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vmstate::channel::tls::Connection;
use vmstate::migrate::multifd::{Receivers, Senders};
use vmstate::migrate::snapshot::FileThreads;

use super::incoming::IncomingListener;
use crate::error::RateLimitedLog;
use crate::migration::ram::MachineRam;
use crate::sandbox::{self, Kind};
use crate::sync::lock;

/// Most connections with a thread of their own: the page channels of a migration, and stray connections, which are closed after
/// 10 s.
const THREADS_MAX: usize = 270;

/// Threads of the pages of one side. Dropping this ends the migration for them, and waits for them.
pub(super) struct PageThreads {
    threads: Vec<JoinHandle<()>>,
    over: Box<dyn Fn() + Send>,
}

impl PageThreads {
    /// Source: starts a thread for each of `channels`, which are connected.
    ///
    /// # Errors
    /// The thread cannot be spawned; those that were started end.
    pub(super) fn send(senders: &Senders, channels: Vec<Connection>, ram: &MachineRam) -> io::Result<Self> {
        let all = senders.clone();
        let mut threads = Self { threads: Vec::new(), over: Box::new(move || all.close()) };
        for (id, mut channel) in (0..).zip(channels) {
            let (worker, ram) = (senders.worker(id), ram.clone());
            threads.threads.push(sandbox::spawn(Kind::Pages, "pages", move || worker.run(&mut channel, &ram))?);
        }
        Ok(threads)
    }

    /// Starts `count` threads that write or read pages of a file.
    ///
    /// # Errors
    /// The thread cannot be spawned; those that were started end.
    pub(super) fn in_file(files: &FileThreads, count: u8, ram: &MachineRam) -> io::Result<Self> {
        let all = files.clone();
        let mut threads = Self { threads: Vec::new(), over: Box::new(move || all.close()) };
        for _ in 0..count {
            let (worker, ram) = (files.worker(), ram.clone());
            threads.threads.push(sandbox::spawn(Kind::Pages, "pages", move || worker.run(&ram))?);
        }
        Ok(threads)
    }

    /// Destination: starts a thread that accepts page channels at `listener` until the migration is over, and starts a thread
    /// for each.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub(super) fn receive(
        receivers: &Receivers,
        listener: &Arc<IncomingListener>,
        ram: &MachineRam,
    ) -> io::Result<Self> {
        let all = receivers.clone();
        let (receivers, listener, ram) = (receivers.clone(), Arc::clone(listener), ram.clone());
        let accept = move || {
            let all = receivers.clone();
            let mut threads = Self { threads: Vec::new(), over: Box::new(move || all.close()) };
            let log = Arc::new(Mutex::new(RateLimitedLog::default()));
            while let Ok(mut channel) = listener.accept_pages(&|| !receivers.is_over()) {
                threads.threads.retain(|thread| !thread.is_finished());
                if threads.threads.len() == THREADS_MAX {
                    continue;
                }
                let (worker, ram, turned_away) = (receivers.worker(), ram.clone(), Arc::clone(&log));
                let started = sandbox::spawn(Kind::Pages, "pages", move || {
                    if let Err(why) = worker.run(&mut channel, &ram) {
                        print(&turned_away, format_args!("a page channel was turned away: {why}"));
                    }
                });
                match started {
                    Ok(thread) => threads.threads.push(thread),
                    Err(error) => print(&log, format_args!("cannot spawn a thread for a page channel: {error}")),
                }
            }
        };
        let threads = vec![sandbox::spawn(Kind::Migration, "channels", accept)?];
        Ok(Self { threads, over: Box::new(move || all.close()) })
    }
}

fn print(log: &Mutex<RateLimitedLog>, sentence: fmt::Arguments<'_>) {
    lock(log).print(sentence);
}

impl Drop for PageThreads {
    fn drop(&mut self) {
        (self.over)();
        for thread in self.threads.drain(..) {
            // A panic was printed already, and the migration has failed.
            let _ = thread.join();
        }
    }
}
