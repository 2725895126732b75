//! Page channels: a thread for each, on both sides of a migration.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vmstate::channel::tls::Connection;
use vmstate::migrate::multifd::{Receivers, Senders};

use super::incoming::IncomingListener;
use crate::error::SparingLog;
use crate::migration::ram::MachineRam;
use crate::sandbox::{self, Kind};
use crate::sync::lock;

/// Connections that are looked at by a thread each, at most: the page channels of a migration, and strays, which go after 10 s.
const THREADS_MAX: usize = 270;

/// The threads of the page channels of one side. When this is dropped, the migration is over for them, and they are waited for.
pub(super) struct PageThreads {
    threads: Vec<JoinHandle<()>>,
    over: Box<dyn Fn() + Send>,
}

impl PageThreads {
    /// Source: a thread for each of `channels`, which are connected.
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

    /// Destination: a thread that takes in the page channels that come to `listener` until the migration is over, with a thread
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
            let log = Arc::new(Mutex::new(SparingLog::default()));
            while let Ok(mut channel) = listener.accept_pages(&|| !receivers.is_over()) {
                threads.threads.retain(|thread| !thread.is_finished());
                if threads.threads.len() == THREADS_MAX {
                    continue;
                }
                let (worker, ram, turned_away) = (receivers.worker(), ram.clone(), Arc::clone(&log));
                let started = sandbox::spawn(Kind::Pages, "pages", move || {
                    if let Err(why) = worker.run(&mut channel, &ram) {
                        tell(&turned_away, format_args!("a page channel was turned away: {why}"));
                    }
                });
                match started {
                    Ok(thread) => threads.threads.push(thread),
                    Err(error) => tell(&log, format_args!("a page channel gets no thread of the host: {error}")),
                }
            }
        };
        let threads = vec![sandbox::spawn(Kind::Migration, "channels", accept)?];
        Ok(Self { threads, over: Box::new(move || all.close()) })
    }
}

fn tell(log: &Mutex<SparingLog>, sentence: fmt::Arguments<'_>) {
    lock(log).say(sentence);
}

impl Drop for PageThreads {
    fn drop(&mut self) {
        (self.over)();
        for thread in self.threads.drain(..) {
            // One that panicked has said so, and the migration has failed.
            let _ = thread.join();
        }
    }
}
