//! Writes disk images back on a thread of its own, so that a slow disk delays neither a paused guest nor a cancel. There is one
//! such thread at a time: a disk that does not answer holds it, and no further thread with each migration.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vmstate::ErrorKind;

use crate::devices::virtio::blk::Image;
use crate::sandbox::{self, Kind};

/// Interval at which a wait checks whether to continue.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The disk images of a machine. Clones share the thread.
#[derive(Clone, Debug)]
pub(in crate::vm) struct WriteBack {
    images: Vec<Arc<Image>>,
    under_way: Arc<AtomicBool>,
}

impl WriteBack {
    pub(in crate::vm) fn new(images: &[Arc<Image>]) -> Self {
        Self { images: images.to_vec(), under_way: Arc::default() }
    }

    /// Writes the images back, and returns the time that took; `None` if `go_on` returned false before the end.
    ///
    /// # Errors
    /// An image could not be written back.
    pub(super) fn run(&self, go_on: &dyn Fn() -> bool) -> vmstate::Result<Option<Duration>> {
        if self.images.is_empty() {
            return Ok(Some(Duration::ZERO));
        }
        let images = self.images.clone();
        self.carry_out(move || images.iter().try_for_each(|image| image.flush()), go_on)
    }

    fn carry_out(
        &self,
        flush: impl FnOnce() -> io::Result<()> + Send + 'static,
        go_on: &dyn Fn() -> bool,
    ) -> vmstate::Result<Option<Duration>> {
        while self.under_way.swap(true, Ordering::SeqCst) {
            if !go_on() {
                return Ok(None);
            }
            thread::sleep(CHECK_INTERVAL);
        }
        let under_way = UnderWay(Arc::clone(&self.under_way));
        let (done, flushed) = mpsc::channel();
        // Nothing waits for a late thread, which ends when the disk answers.
        let begun = sandbox::spawn(Kind::Device, "write-back", move || {
            let begun = Instant::now();
            // Measured here, since the waiting thread may get the processor back late.
            let flushed = flush().map(|()| begun.elapsed());
            drop(under_way);
            let _ = done.send(flushed);
        });
        begun.map_err(|error| failed("cannot spawn the thread that writes disk images back", error))?;
        loop {
            match flushed.recv_timeout(CHECK_INTERVAL) {
                Ok(result) => {
                    let what =
                        "a disk image could not be written back, so no other host would see what the guest wrote";
                    return result.map(Some).map_err(|error| failed(what, error));
                }
                Err(mpsc::RecvTimeoutError::Timeout) if go_on() => {}
                Err(_) => return Ok(None),
            }
        }
    }
}

/// Whether the thread has work, or is to be started.
struct UnderWay(Arc<AtomicBool>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Makes an I/O error of a disk or of its record.
pub(super) fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, what).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn migrations_that_are_given_up_while_a_disk_does_not_answer_leave_one_thread() {
        let write_back = WriteBack::new(&[]);
        let (answer, answers) = mpsc::channel::<()>();
        let flushes = Arc::new(AtomicU32::new(0));
        let answers = Arc::new(std::sync::Mutex::new(answers));
        let flush = || {
            let (flushes, answers) = (Arc::clone(&flushes), Arc::clone(&answers));
            move || {
                flushes.fetch_add(1, Ordering::SeqCst);
                let _ = answers.lock().unwrap().recv();
                Ok(())
            }
        };
        for _ in 0..20 {
            assert_eq!(write_back.carry_out(flush(), &|| false).unwrap(), None);
        }
        // The same for a write-back that waits.
        let later = {
            let (write_back, flush) = (write_back.clone(), flush());
            thread::spawn(move || write_back.carry_out(flush, &|| true).unwrap())
        };
        assert!(flushes.load(Ordering::SeqCst) <= 1, "{flushes:?} threads wait for the disk");
        drop(answer);
        assert!(later.join().unwrap().is_some(), "the disk answers again");
        assert_eq!(flushes.load(Ordering::SeqCst), 2);
    }
}
