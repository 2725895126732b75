//! `Timer` and `Deadline`: when a timer of the device next fires, in the time of its clock or of the host.

use std::time::{Duration, Instant};

use super::super::Wire;
use super::represented::represented;
use crate::codec::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

/// When a timer fires: the time of its clock since that clock's zero; `None` if the timer is not armed. On the wire it is whole
/// nanoseconds in 8 bytes, all ones if the timer is not armed (QEMU's `VMSTATE_TIMER`, migration/savevm.c, `timer_put`). A load
/// does not arm the timer: the device's `post_load` does.
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

/// A clock of the machine, which a [`Deadline`] uses to convert between guest time and host time.
///
/// Both conversions use the same linear relation, also for times in the past. The clock's own state must be loaded first: give
/// its section a higher priority than sections with deadlines.
pub trait GuestClock {
    /// The time that this clock shows at the host time `host`; `None` if it shows none.
    fn guest_time(&self, host: Instant) -> Option<Duration>;
    /// The host time at which this clock shows `guest`; `None` if there is none.
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

/// When a timer fires in host time, for a device that arms host timers; `None` if the timer is not armed. It has the bytes of a
/// [`Timer`]: the time that the guest's `clock` then shows, because host time has no meaning on another host. The guest's clock
/// continues during a migration, so the deadline comes nearer, and a deadline that has passed meanwhile is in the past.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use std::time::{Duration, Instant};
/// use vmstate::codec::Reader;
/// use vmstate::state::{Deadline, GuestClock};
/// use vmstate::testing::bytes;
/// use vmstate::VmState;
///
/// /// A clock that showed 0 at the instant that it holds.
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
    /// When the timer fires.
    pub at: Option<Instant>,
    clock: C,
}

impl<C> Deadline<C> {
    /// A timer that is not armed.
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

/// The value on the wire for a timer that is not armed.
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
