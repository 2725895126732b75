//! Sets the user's terminal to raw mode, and restores it however the process ends.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once};

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::sync::lock;

/// Settings to restore while the terminal is raw. Global, so that the panic hook has access.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps standard input raw until it is dropped: keys, Ctrl-C among them, go to the guest.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets standard input to raw mode; `None` if it is no terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        restore_on_panic();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // As in QEMU: the program's own messages still begin at the left margin.
        raw.output_flags |= OutputFlags::OPOST;
        *lock(&SAVED) = Some(before);
        let guard = Self(());
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal before the process ends without dropping values. May be called at any time.
pub fn restore() {
    if let Some(before) = lock(&SAVED).take() {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// Restores the terminal before a panic message is printed, so that the message is readable.
fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            next(info);
        }));
    });
}
