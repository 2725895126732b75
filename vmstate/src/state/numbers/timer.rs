//! `Timer` and `Deadline`: when a timer of the device fires next, by its clock and by the host's.

use std::time::{Duration, Instant};

use super::super::Wire;
use super::represented::represented;
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

/// A clock of the machine, as a [`Deadline`] needs it: which of its times is which of the host's.
///
/// Both directions go by the same straight line, times that have passed included. On a load the clock's own state must be there
/// already: give its section a higher priority than those that have deadlines.
pub trait GuestClock {
    /// What this clock shows when the host's shows `host`; `None` if it never shows that.
    fn guest_time(&self, host: Instant) -> Option<Duration>;
    /// When the host's clock shows what it does as this one shows `guest`; `None` if it never does.
    fn host_time(&self, guest: Duration) -> Option<Instant>;
}

macro_rules! pointer {
    ($($pointer:ty),*) => {$(
        impl<C: GuestClock + ?Sized> GuestClock for $pointer {
            fn guest_time(&self, host: Instant) -> Option<Duration> {
                (**self).guest_time(host)
            }

            fn host_time(&self, guest: Duration) -> Option<Instant> {
                (**self).host_time(guest)
            }
        }
    )*};
}

pointer!(&C, std::sync::Arc<C>, std::rc::Rc<C>);

/// When a timer fires by the host's clock, for a device that arms host timers: `None` if it is not armed. It has the bytes of a
/// [`Timer`], the time that the guest's `clock` then shows, as the host's clock means nothing on another host. Since the
/// guest's clock goes on during a migration, so does the deadline come nearer; one that has passed meanwhile is in the past.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use std::time::{Duration, Instant};
/// use vmstate::codec::Reader;
/// use vmstate::state::{Deadline, GuestClock};
/// use vmstate::testing::bytes;
/// use vmstate::VmState;
///
/// /// Showed 0 at the instant that it holds.
/// struct Uptime(Mutex<Instant>);
///
/// impl GuestClock for Uptime {
///     fn guest_time(&self, host: Instant) -> Option<Duration> {
///         host.checked_duration_since(*self.0.lock().unwrap())
///     }
///
///     fn host_time(&self, guest: Duration) -> Option<Instant> {
///         self.0.lock().unwrap().checked_add(guest)
///     }
/// }
///
/// #[derive(VmState)]
/// #[vmstate(name = "watchdog")]
/// struct Watchdog {
///     expiry: Deadline<Arc<Uptime>>,
/// }
///
/// let start = Instant::now();
/// let clock = Arc::new(Uptime(Mutex::new(start)));
/// let mut watchdog = Watchdog { expiry: Deadline::new(clock) };
/// watchdog.expiry.at = Some(start + Duration::from_nanos(0x1234));
/// assert_eq!(bytes(&mut watchdog), b"\0\0\0\0\0\0\x12\x34");
/// watchdog.load_or_keep(&mut Reader::strict(b"\0\0\0\0\0\0\0\x07"), 1)?;
/// assert_eq!(watchdog.expiry.at, Some(start + Duration::from_nanos(7)));
/// # Ok::<(), vmstate::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline<C> {
    /// When it fires.
    pub at: Option<Instant>,
    clock: C,
}

impl<C> Deadline<C> {
    /// Not armed.
    pub fn new(clock: C) -> Self {
        Self { at: None, clock }
    }
}

impl<C: GuestClock> Wire for Deadline<C> {
    type Undo = Option<Instant>;
    const KIND: Kind = Kind::Timer;

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        let time = self.at.map(|at| {
            let time = self.clock.guest_time(at);
            time.ok_or_else(|| {
                Error::new(ErrorKind::Rejected, "the guest's clock never shows the time of this deadline")
            })
        });
        Timer(time.transpose()?).save(out)
    }

    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        let offset = input.offset();
        let mut timer = Timer(None);
        timer.load(input)?;
        let at = timer.0.map(|time| {
            let never =
                || Error::new(ErrorKind::Rejected, format!("the host's clock never shows {time:?} of the guest's"));
            self.clock.host_time(time).ok_or_else(|| never().at(offset))
        });
        self.at = at.transpose()?;
        Ok(())
    }

    fn remember(&self) -> Option<Instant> {
        self.at
    }

    fn undo(&mut self, undo: Option<Instant>) {
        self.at = undo;
    }
}

/// What is on the wire for a timer that is not armed.
const NOT_ARMED: u64 = u64::MAX;

represented! {
    Timer as u64, Kind::Timer,
        |timer| match timer.0 {
            None => Ok(NOT_ARMED),
            Some(expiry) => u64::try_from(expiry.as_nanos())
                .ok()
                .filter(|nanos| *nanos != NOT_ARMED)
                .ok_or_else(|| Error::new(ErrorKind::Rejected, format!("{expiry:?} does not fit 64 bits of ns"))),
        },
        |nanos| Ok(Self((nanos != NOT_ARMED).then(|| Duration::from_nanos(nanos))));
}
