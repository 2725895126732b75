//! Queue of requests to the driver. A quit comes first, then requests of users and of the migration engine in the order of
//! their arrival, then actions of the guest. So a guest that acts without end delays no request.

use std::collections::VecDeque;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sync::{lock, wait, wait_within};
use crate::vm::request::{AnyRequest, Envelope, GuestEvent, Refusal, Request};

/// Next item for the driver.
#[derive(Debug)]
pub enum Next {
    /// A request of a user or of the engine.
    Asked(Envelope),
    /// An action of the guest.
    Guest(GuestEvent),
}

/// The driver's end of the queue. When it is dropped, all senders that wait for an answer learn that the machine has ended.
#[derive(Debug)]
pub struct Queue {
    waiting: Arc<Waiting>,
    deferred: Vec<Envelope>,
}

/// Waiting requests. Each sender waits for its answer, except for a quit, which is a flag, and for the migration thread, which
/// sends one at a time: so the list is bounded.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    state: Mutex<Queued>,
    /// Wakes the driver.
    changed: Condvar,
    /// Wakes the thread that waits for the driver's end, only for a quit: other requests may come in a migration's pause.
    ends: Condvar,
}

#[derive(Debug, Default)]
struct Queued {
    arrived: VecDeque<Envelope>,
    quit: Option<Instant>,
    /// Why the machine cannot continue.
    failed: Option<String>,
    /// Whether the driver takes no more requests.
    closed: bool,
    /// Whether the driver has ended, and the machine with it.
    gone: bool,
}

/// Refusal of every request once the driver has ended.
pub(super) fn gone() -> Refusal {
    Refusal("the machine has ended".into())
}

impl Waiting {
    /// Queues `request`, or refuses it if the driver takes no more. A quit is answered at once: it is never refused, the driver
    /// may be busy, and if the driver has ended, the quit is done.
    pub(super) fn put(&self, (request, answer): Envelope) -> Result<(), Refusal> {
        let mut state = self.lock();
        if matches!(request, AnyRequest::User(Request::Quit)) {
            state.quit.get_or_insert_with(Instant::now);
            self.ends.notify_all();
            // The sender may be gone.
            let _ = answer.send(Ok(()));
        } else if state.closed {
            return Err(gone());
        } else {
            state.arrived.push_back((request, answer));
        }
        // Released first, since the woken driver takes the lock.
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Wakes the driver after an action of the guest.
    pub(super) fn wake(&self) {
        // Taken and released, so that a driver that has checked already is waiting by now.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Ends the machine, without waiting for the driver.
    pub(super) fn fail(&self, why: String) {
        self.lock().failed.get_or_insert(why);
        self.ends.notify_all();
    }

    /// Waits until the driver has ended, after a quit for at most `timeout`.
    pub(super) fn await_end(&self, timeout: Duration) -> Awaited {
        let mut state = self.lock();
        while !state.gone {
            if let Some(why) = state.failed.take() {
                return Awaited::Failed(why);
            }
            state = match state.quit.map(|quit| timeout.saturating_sub(quit.elapsed())) {
                None => wait(&self.ends, state),
                Some(Duration::ZERO) => return Awaited::Stuck,
                Some(left) => wait_within(&self.ends, state, left),
            };
        }
        Awaited::Gone
    }

    /// Returns a token; the driver has ended once it is dropped.
    pub(super) fn present(self: &Arc<Self>) -> Presence {
        Presence(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, Queued> {
        lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, Queued>) -> MutexGuard<'a, Queued> {
        wait(&self.changed, state)
    }
}

/// Result of waiting for the driver's end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The driver's thread has ended.
    Gone,
    /// The driver is busy, and a quit was requested.
    Stuck,
    /// The machine cannot continue, for this reason.
    Failed(String),
}

/// Token that exists as long as the driver's thread runs.
pub(super) struct Presence(Arc<Waiting>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.lock().gone = true;
        self.0.ends.notify_all();
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { waiting: Arc::default(), deferred: Vec::new() }
    }

    /// Returns the queue for senders.
    pub(super) fn waiting(&self) -> &Arc<Waiting> {
        &self.waiting
    }

    /// Waits for the next item. `guest` returns the guest's action; it is called again at each wake-up.
    pub fn next(&mut self, guest: &dyn Fn() -> Option<GuestEvent>) -> Next {
        let mut state = self.waiting.lock();
        loop {
            if state.quit.is_some() {
                return Next::Asked((Request::Quit.into(), channel().0));
            }
            if let Some(envelope) = state.arrived.pop_front() {
                return Next::Asked(envelope);
            }
            if let Some(event) = guest() {
                return Next::Guest(event);
            }
            state = self.waiting.wait(state);
        }
    }

    /// Number of waiting requests.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().arrived.len()
    }

    /// Keeps a request until the migration has ended.
    pub(super) fn defer(&mut self, envelope: Envelope) {
        self.deferred.push(envelope);
    }

    /// Puts the deferred requests in front, in their order: the migration has ended.
    pub(super) fn take_up_deferred(&mut self) {
        let mut state = self.waiting.lock();
        for envelope in self.deferred.drain(..).rev() {
            state.arrived.push_front(envelope);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut state = self.waiting.lock();
        state.closed = true;
        state.arrived.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::vm::request::EngineRequest;

    fn put(queue: &Queue, request: impl Into<AnyRequest>) {
        queue.waiting().put((request.into(), channel().0)).unwrap();
    }

    /// Describes the next item, while the guest has reset itself.
    fn next(queue: &mut Queue) -> String {
        match queue.next(&|| Some(GuestEvent::Reset)) {
            Next::Asked((request, _)) => format!("{request:?}"),
            Next::Guest(event) => format!("Guest({event:?})"),
        }
    }

    #[test]
    fn users_overtake_the_guest_and_a_quit_overtakes_all() {
        let mut queue = Queue::new();
        put(&queue, Request::Stop);
        put(&queue, EngineRequest::Resume);
        put(&queue, Request::Cont);
        let order: Vec<_> = (0..4).map(|_| next(&mut queue)).collect();
        assert_eq!(order, ["User(Stop)", "Engine(Resume)", "User(Cont)", "Guest(Reset)"]);
        put(&queue, Request::Stop);
        put(&queue, Request::Quit);
        assert_eq!(next(&mut queue), "User(Quit)");
    }

    #[test]
    fn what_was_deferred_comes_first() {
        let mut queue = Queue::new();
        for request in [Request::Stop, Request::Reset] {
            queue.defer((request.into(), channel().0));
        }
        put(&queue, Request::Cont);
        queue.take_up_deferred();
        let order: Vec<_> = (0..3).map(|_| next(&mut queue)).collect();
        assert_eq!(order, ["User(Stop)", "User(Reset)", "User(Cont)"]);
    }

    /// A quit is answered at once, however often it is requested and whether or not the driver reads requests.
    #[test]
    fn a_quit_is_answered_at_once_and_held_once() {
        let queue = Queue::new();
        for _ in 0..1000 {
            let (answer, answers) = channel();
            queue.waiting().put((Request::Quit.into(), answer)).unwrap();
            assert_eq!(answers.try_recv(), Ok(Ok(())));
        }
        assert!(queue.waiting().lock().arrived.is_empty());
    }

    #[test]
    fn whoever_waits_for_a_driver_that_ends_is_let_go() {
        let queue = Queue::new();
        let (answer, answers) = channel();
        queue.waiting().put((Request::Stop.into(), answer)).unwrap();
        let waiting = Arc::clone(queue.waiting());
        drop(queue);
        assert!(answers.recv().is_err());
        assert!(waiting.put((Request::Stop.into(), channel().0)).is_err());
        assert!(waiting.put((Request::Quit.into(), channel().0)).is_ok());
    }

    /// The wait for the end is unlimited before a quit, and short after it.
    #[test]
    fn a_quit_does_not_wait_for_a_driver_that_is_stuck() {
        let queue = Queue::new();
        let presence = queue.waiting().present();
        let awaited = {
            let waiting = Arc::clone(queue.waiting());
            thread::spawn(move || waiting.await_end(Duration::from_millis(50)))
        };
        thread::sleep(Duration::from_millis(100));
        assert!(!awaited.is_finished(), "there was no quit yet");
        put(&queue, Request::Quit);
        assert_eq!(awaited.join().unwrap(), Awaited::Stuck);
        queue.waiting().fail("no memory".into());
        assert_eq!(queue.waiting().await_end(Duration::from_secs(60)), Awaited::Failed("no memory".into()));
        drop(presence);
        assert_eq!(queue.waiting().await_end(Duration::ZERO), Awaited::Gone);
    }
}
