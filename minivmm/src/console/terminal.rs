//! The user's terminal in raw mode, and back again however the process ends.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once};

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::sync::lock;

/// Settings of the terminal as the user left it, while it is raw. One a process, for a panic hook has no other way to it.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input is raw while this lives: keys, Ctrl-C among them, go to the guest.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw; `None` if it is no terminal.
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
        // As QEMU: this program's own messages still begin at the left margin.
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

/// Gives the terminal back, before a way out of the process that drops nothing. Harmless at any time.
pub fn restore() {
    if let Some(before) = lock(&SAVED).take() {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// Before the message of the panic is printed, so that it can be read.
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
