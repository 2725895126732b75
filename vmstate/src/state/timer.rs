//! `Timer`: when a timer of the device fires next.

use std::time::Duration;

use super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

/// When a timer fires: the time of its clock, counted from that clock's zero; `None` if it is not armed. On the wire
/// it is whole nanoseconds in 8 bytes, all ones if it is not armed (QEMU's `VMSTATE_TIMER`, migration/savevm.c,
/// `timer_put`). A load arms nothing: `post_load` does.
///
/// ```
/// use std::time::Duration;
/// use vmstate::{Timer, VmState};
///
/// #[derive(VmState, Default)]
/// #[vmstate(name = "watchdog")]
/// struct Watchdog {
///     expiry: Timer,
/// }
///
/// let watchdog = Watchdog { expiry: Timer(Some(Duration::from_millis(20))) };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timer(pub Option<Duration>);

/// What is on the wire for a timer that is not armed.
const NOT_ARMED: u64 = u64::MAX;

impl Wire for Timer {
    type Undo = Self;
    const KIND: Kind = Kind::Timer;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        let nanos = match self.0 {
            None => NOT_ARMED,
            Some(expiry) => u64::try_from(expiry.as_nanos())
                .ok()
                .filter(|nanos| *nanos != NOT_ARMED)
                .ok_or_else(|| Error::new(ErrorKind::Rejected, format!("{expiry:?} does not fit 64 bits of ns")))?,
        };
        out.u64(nanos);
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        let nanos = input.u64()?;
        self.0 = (nanos != NOT_ARMED).then(|| Duration::from_nanos(nanos));
        Ok(())
    }

    fn remember(&self) -> Self {
        *self
    }

    fn undo(&mut self, undo: Self) {
        *self = undo;
    }
}
