//! Writes disk images back on a thread of its own, so that a slow disk keeps neither a paused guest nor a cancel waiting.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use vmstate::ErrorKind;

use crate::devices::virtio::blk::Image;
use crate::sandbox::{self, Kind};

/// How often a wait asks whether to go on.
const LOOK: Duration = Duration::from_millis(10);

/// Writes `images` back, and returns how long that took; `None` if `go_on` said false before it was done.
///
/// # Errors
/// An image could not be written back.
pub(super) fn write_back(images: &[Arc<Image>], go_on: &dyn Fn() -> bool) -> vmstate::Result<Option<Duration>> {
    if images.is_empty() {
        return Ok(Some(Duration::ZERO));
    }
    let images = images.to_vec();
    let (done, flushed) = mpsc::channel();
    // Nobody waits for a thread that is late; it ends with the disk's answer.
    let begun = sandbox::spawn(Kind::Device, "write-back", move || {
        let begun = Instant::now();
        // Taken here: the thread that waits may get the processor back late.
        let flushed = images.iter().try_for_each(|image| image.flush());
        let _ = done.send(flushed.map(|()| begun.elapsed()));
    });
    begun.map_err(|error| failed("the host gives no thread to write disk images back", error))?;
    loop {
        match flushed.recv_timeout(LOOK) {
            Ok(result) => {
                let what = "a disk image could not be written back, so no other host would see what the guest wrote";
                return result.map(Some).map_err(|error| failed(what, error));
            }
            Err(mpsc::RecvTimeoutError::Timeout) if go_on() => {}
            Err(_) => return Ok(None),
        }
    }
}

/// An I/O error of a disk or of its record.
pub(super) fn failed(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> vmstate::Error {
    vmstate::Error::new(ErrorKind::Io, what).with_source(error)
}
