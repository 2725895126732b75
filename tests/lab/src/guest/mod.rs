//! The workload in the guest, as the guest's first process: it works, and verifies its work on request.
//!
//! The machine decides the load: memory as the command line says, files when there is a disk, packets when there is a
//! network card, and always a tick. Commands and answers are lines on the serial console.

pub mod clock;
mod disk;
mod firmware;
mod kernel_log;
mod memory;
pub mod net;
pub mod pattern;
pub mod waits;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use crate::error::{FileContext, Result};
use crate::kernel::GUEST_MODULES;
use crate::pid1;

/// Argument after which the executable acts as the guest's first process.
pub const ROLE: &str = "guest";
/// Prefix of each line on the console that is a message of the workload; JSON follows.
pub const PREFIX: &str = "@lab ";
const CONSOLE: &str = "/dev/console";
const COUNT: &str = "count";
/// Pause between two numbers: short enough to notice soon that a guest runs; each byte costs the host two exits.
const COUNT_PAUSE: Duration = Duration::from_millis(50);

/// Options of the workload, from the kernel's command line after `-- guest`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Memory to dirty, in MiB; 0 dirties none.
    pub memory_mib: usize,
    /// Pages to dirty a second; 0 is no limit.
    pub rate: u64,
    /// Prints ascending numbers without end, so that a reader of several consoles sees whether one is missing or
    /// printed twice.
    pub counts: bool,
    /// Runs a shell on the console instead of the workload.
    pub shell: bool,
}

impl Options {
    /// The end of the kernel's command line that selects these options.
    pub fn command_line(self) -> String {
        if self.shell {
            format!("-- {ROLE} shell")
        } else {
            let counts = if self.counts { " counts" } else { "" };
            format!("-- {ROLE} memory={} rate={}{counts}", self.memory_mib, self.rate)
        }
    }

    fn parse(words: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        for word in words {
            match word.split_once('=') {
                Some(("memory", value)) => options.memory_mib = value.parse().unwrap_or(0),
                Some(("rate", value)) => options.rate = value.parse().unwrap_or(0),
                _ => {
                    options.shell |= word == "shell";
                    options.counts |= word == "counts";
                }
            }
        }
        options
    }
}

/// A workload's state, which a thread changes in small steps; a verification can hold it between two steps.
#[derive(Debug)]
struct Work<T> {
    state: Mutex<T>,
    held: AtomicBool,
}

impl<T: Send + 'static> Work<T> {
    /// Repeats `step` in a thread of its own; `step` returns the pause before the next one.
    fn start(state: T, mut step: impl FnMut(&mut T) -> Duration + Send + 'static) -> Arc<Self> {
        let work = Arc::new(Self { state: Mutex::new(state), held: AtomicBool::new(false) });
        let worker = Arc::clone(&work);
        thread::spawn(move || {
            loop {
                // Mutexes are not fair: a busy worker would take the lock again at once, every time.
                while worker.held.load(Ordering::Acquire) {
                    thread::sleep(Duration::from_millis(1));
                }
                let pause = step(&mut worker.lock());
                if !pause.is_zero() {
                    thread::sleep(pause);
                }
            }
        });
        work
    }

    /// Stops the work while `look` reads its state.
    fn hold<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        self.held.store(true, Ordering::Release);
        let result = look(&mut self.lock());
        self.held.store(false, Ordering::Release);
        result
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the workload, never returns.
pub(crate) fn main() -> ! {
    pid1::mount_all();
    pid1::load_modules(GUEST_MODULES);
    let options = Options::parse(std::env::args().skip(2));
    let ended = if options.shell { shell() } else { work(options) };
    if let Err(error) = ended {
        println!("guest: {error}");
    }
    pid1::power_off()
}

fn shell() -> Result<()> {
    let shell = Path::new("/bin/busybox");
    Command::new(shell).args(["sh", "-i"]).status().doing("run", shell)?;
    Ok(())
}

fn work(options: Options) -> Result<()> {
    let (input, output) = console()?;
    let ticks = clock::Ticks::start();
    let memory = (options.memory_mib > 0).then(|| memory::start(options.memory_mib, options.rate));
    let disk = Path::new("/dev/vda").exists().then(disk::start).transpose()?;
    let net = Path::new("/sys/class/net/eth0").exists().then(net::start).transpose()?;
    let print = |event: &str, value: Value| print_event(&output, event, value);
    print("ready", clock::now());
    if options.counts {
        let output = output.try_clone().doing("share", Path::new(CONSOLE))?;
        thread::spawn(move || count(&output));
    }
    for line in input.split(b'\n').map_while(std::result::Result::ok) {
        match String::from_utf8_lossy(&line).trim() {
            "" => {}
            "mark" => {
                let (clock, tick) = (clock::now(), ticks.take());
                let memory = memory.as_ref().map(|work| work.hold(memory::mark));
                print(
                    "mark",
                    json!({ "clock": clock, "tick": tick, "memory": memory, "log": kernel_log::complaints() }),
                );
            }
            "report" => {
                let net = net.as_ref().map(|net| net.report());
                let report = json!({
                    "memory": memory.as_ref().map(|work| work.hold(memory::verify)),
                    "disk": disk.as_ref().map(|work| work.hold(disk::verify)),
                    "net": net,
                });
                print("report", report);
            }
            "clock" => print("clock", clock::now()),
            "firmware" => print("firmware", firmware::seen()),
            end @ ("poweroff" | "reboot") => {
                if let Some(disk) = &disk {
                    disk.hold(|_| disk::unmount());
                }
                if end == "reboot" {
                    pid1::reboot_now();
                }
                return Ok(());
            }
            other => print("unknown", json!(other)),
        }
    }
    Ok(())
}

/// Writes one message with one call, because several threads share the console.
fn print_event(mut output: &File, event: &str, value: Value) {
    let mut line = json!({});
    line[event] = value;
    let _ = output.write_all(format!("\r\n{PREFIX}{line}\r\n").as_bytes());
}

/// Prints the numbers 1, 2, 3 and so on.
fn count(output: &File) {
    for number in 1_u64.. {
        print_event(output, COUNT, json!(number));
        thread::sleep(COUNT_PAUSE);
    }
}

/// The numbers that a guest with [`Options::counts`] has printed as whole lines on a console.
///
/// ```
/// let console = "@lab {\"count\":9}\r\n\r\n@lab {\"ready\":{}}\r\n\r\n@lab {\"count\":10}\r\n\r\n@lab {\"count\":11}";
/// assert_eq!(vmstate_lab::guest::counted(console), [9, 10]);
/// ```
pub fn counted(console: &str) -> Vec<u64> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    let begin = format!("{PREFIX}{{\"{COUNT}\":");
    let numbers = whole.lines().filter_map(|line| line.trim().strip_prefix(&begin)?.strip_suffix('}'));
    numbers.filter_map(|digits| digits.parse().ok()).collect()
}

/// Opens the console without echo and without changes to the bytes that pass.
fn console() -> Result<(impl BufRead, File)> {
    let path = Path::new(CONSOLE);
    let console = OpenOptions::new().read(true).write(true).open(path).doing("open", path)?;
    let mut settings = tcgetattr(console.as_fd()).doing("set up", path)?;
    cfmakeraw(&mut settings);
    tcsetattr(console.as_fd(), SetArg::TCSANOW, &settings).doing("set up", path)?;
    Ok((BufReader::new(console.try_clone().doing("share", path)?), console))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_command_line() {
        for options in [
            Options { memory_mib: 64, rate: 5000, ..Options::default() },
            Options { memory_mib: 64, rate: 5000, counts: true, shell: false },
            Options { shell: true, ..Options::default() },
            Options::default(),
        ] {
            let line = options.command_line();
            assert_eq!(Options::parse(line.split(' ').skip(2).map(str::to_owned)), options);
        }
    }

    #[test]
    fn work_stops_while_it_is_held() {
        let work = Work::start(0u64, |count| {
            *count += 1;
            Duration::ZERO
        });
        let (first, second) = work.hold(|count| {
            let first = *count;
            thread::sleep(Duration::from_millis(20));
            (first, *count)
        });
        assert_eq!(first, second);
        while work.hold(|count| *count) == second {
            thread::yield_now();
        }
    }
}
