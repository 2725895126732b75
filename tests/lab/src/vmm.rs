//! A virtual-machine monitor as a process: minivmm, or QEMU's microvm, which has the same devices and QMP commands.

mod migration;

pub use migration::unix_channel;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::guest;
use crate::process::Process;
use crate::qemu;
use crate::qmp::Qmp;

const START: Duration = Duration::from_secs(60);

/// The monitor's program.
#[derive(Clone, Debug)]
pub enum Program {
    /// This executable, as `minivmm run`.
    Minivmm(PathBuf),
    /// This `qemu-system-x86_64`, with the accelerator `kvm` or `tcg`.
    Qemu(PathBuf, &'static str),
}

/// The machine that the monitor is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// vCPUs.
    pub cpus: u8,
    /// Raw image of the disk.
    pub disk: Option<PathBuf>,
    /// The network that the card is attached to.
    pub card: Option<Attachment>,
    /// Whether minivmm's card offers UDP segmentation, as a QEMU since 8.2 does by default.
    pub uso: bool,
    /// Control socket.
    pub control: PathBuf,
    /// Address to wait on for a migration.
    pub incoming: Option<String>,
    /// Further arguments, in the program's own form.
    pub more: Vec<String>,
}

/// The network backend of a card.
#[derive(Clone, Debug)]
pub enum Attachment {
    /// This tap interface.
    Tap(String),
    /// This tap interface, with the frames moved by the host's kernel (vhost-net).
    Vhost(String),
    /// The process that listens at this socket.
    Stream(PathBuf),
}

/// A monitor that was started, with no connection to its control socket yet; ended when dropped.
#[derive(Debug)]
pub struct Started {
    program: PathBuf,
    control: PathBuf,
    process: Process,
    input: ChildStdin,
    messages: Receiver<(SystemTime, Value)>,
    console: Arc<Mutex<Gathered>>,
    errors: Arc<Mutex<Gathered>>,
    console_reader: JoinHandle<()>,
    errors_reader: JoinHandle<()>,
}

/// A running monitor; ended when dropped.
#[derive(Debug)]
pub struct Vmm {
    process: Process,
    /// The connection to the control socket.
    pub qmp: Qmp,
    input: ChildStdin,
    /// Messages of the guest, each with the time when its first byte was read.
    messages: Receiver<(SystemTime, Value)>,
    console: Arc<Mutex<Gathered>>,
    errors: Arc<Mutex<Gathered>>,
    readers: Vec<JoinHandle<()>>,
}

impl Started {
    /// Starts the monitor; `launcher` as in [`Process::spawn`].
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(launcher: Option<&Path>, program: &Program, config: &Config) -> Result<Self> {
        let (Program::Minivmm(path) | Program::Qemu(path, _)) = program;
        let mut process = Process::spawn(launcher, path, |command| {
            match program {
                Program::Minivmm(_) => command.args(minivmm_arguments(config)),
                Program::Qemu(_, accelerator) => command.args(qemu_arguments(config, accelerator)),
            };
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        })?;
        let closed = || Error::failed("the monitor's streams are closed");
        let input = process.child().stdin.take().ok_or_else(closed)?;
        let output = process.child().stdout.take().ok_or_else(closed)?;
        let complaints = process.child().stderr.take().ok_or_else(closed)?;
        let (sender, messages) = channel();
        let (console, console_reader) = gather(output, move |begun, line| {
            if let Some((_, message)) = line.split_once(guest::PREFIX)
                && let Ok(message) = serde_json::from_str(message)
            {
                // The receiver is gone when this fails.
                let _ = sender.send((begun, message));
            }
        });
        let (errors, errors_reader) = gather(complaints, |_, _| ());
        let (program, control) = (path.clone(), config.control.clone());
        Ok(Self { program, control, process, input, messages, console, errors, console_reader, errors_reader })
    }

    /// Waits until the monitor listens at the socket at which it waits for a guest.
    ///
    /// # Errors
    /// The monitor's last output when it ended, or that it does not make the socket.
    pub fn await_socket(mut self, socket: &Path) -> Result<Self> {
        let deadline = Instant::now() + START;
        while !listens(self.process.id(), socket) {
            if self.process.ended().is_some() || Instant::now() > deadline {
                return Err(self.end(&Error::failed(format!("the monitor does not listen at {}", socket.display()))));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(self)
    }

    /// Connects to the monitor's control socket.
    ///
    /// # Errors
    /// The monitor's last output when it ended, or that it does not answer.
    pub fn connect(mut self) -> Result<Vmm> {
        let deadline = Instant::now() + START;
        let qmp = loop {
            match Qmp::connect(&self.control, Instant::now() + Duration::from_millis(200)) {
                Ok(qmp) => break qmp,
                Err(error) if self.process.ended().is_some() || Instant::now() > deadline => {
                    return Err(self.end(&error));
                }
                Err(_) => {}
            }
        };
        Ok(self.with(qmp))
    }

    /// The monitor without a QMP connection, which its first command makes.
    pub fn unconnected(self) -> Vmm {
        let qmp = Qmp::later(&self.control);
        self.with(qmp)
    }

    fn with(self, qmp: Qmp) -> Vmm {
        let Self { process, input, messages, console, errors, console_reader, errors_reader, .. } = self;
        Vmm { process, qmp, input, messages, console, errors, readers: vec![console_reader, errors_reader] }
    }

    /// Ends the monitor, and adds its output to `error`.
    fn end(mut self, error: &Error) -> Error {
        self.process.kill();
        drop(self.errors_reader.join());
        Error::failed(format!("{}: {error}; it said: {}", self.program.display(), read(&self.errors).trim()))
    }
}

impl Vmm {
    /// Starts the monitor and connects to its control socket; `launcher` as in [`Process::spawn`].
    ///
    /// # Errors
    /// The monitor's output when it ended at once, or that it does not answer.
    pub fn spawn(launcher: Option<&Path>, program: &Program, config: &Config) -> Result<Self> {
        Started::spawn(launcher, program, config)?.connect()
    }

    /// The process, to wait for it or to kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for the monitor's end, and until its output and the guest's is read.
    ///
    /// # Errors
    /// When the monitor still runs at `deadline`.
    pub fn wait_end(&mut self, deadline: Instant) -> Result<ExitStatus> {
        let status = self.process.wait(deadline)?;
        // The streams are closed now. A reader that panicked has kept what it read.
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
        Ok(status)
    }

    /// Everything the guest wrote to its serial port.
    pub fn console(&self) -> String {
        read(&self.console)
    }

    /// The times, by the host's clock, when the parts of the console were read, in order.
    pub fn console_times(&self) -> Vec<SystemTime> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).times.clone()
    }

    /// Everything the monitor wrote to its standard error.
    pub fn errors(&self) -> String {
        read(&self.errors)
    }

    /// Waits for the guest's message `event` and returns its content.
    ///
    /// # Errors
    /// When the message does not come by `deadline`, or the monitor ends.
    pub fn expect(&mut self, event: &str, deadline: Instant) -> Result<Value> {
        self.expect_timed(event, deadline).map(|(_, content)| content)
    }

    /// As [`Vmm::expect`], with the time when the message began to come.
    fn expect_timed(&mut self, event: &str, deadline: Instant) -> Result<(SystemTime, Value)> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left) {
                Ok((begun, mut message)) => {
                    if let Some(content) = message.get_mut(event) {
                        return Ok((begun, content.take()));
                    }
                }
                Err(reason) => {
                    let what =
                        if reason == RecvTimeoutError::Timeout { "did not arrive in time" } else { "never arrived" };
                    let (console, errors) = (self.console(), self.errors());
                    let tail: Vec<_> = console.lines().rev().take(5).collect();
                    let sentence =
                        format!("the guest's {event:?} {what}; monitor: {errors:?}; console, last first: {tail:?}");
                    return Err(Error::failed(sentence));
                }
            }
        }
    }

    /// Writes to the guest's serial port.
    ///
    /// # Errors
    /// When the monitor has ended.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let write = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
        write.map_err(|error| Error::failed(format!("the guest's console: {error}")))
    }

    /// Gives the guest's workload a command and returns its answer.
    ///
    /// # Errors
    /// When the guest does not answer by `deadline`.
    pub fn ask(&mut self, command: &str, deadline: Instant) -> Result<Value> {
        self.ask_timed(command, deadline).map(|(_, answer)| answer)
    }

    /// As [`Vmm::ask`], with the time when the answer began to come: a guest takes some milliseconds to print it.
    ///
    /// # Errors
    /// As [`Vmm::ask`].
    pub fn ask_timed(&mut self, command: &str, deadline: Instant) -> Result<(SystemTime, Value)> {
        self.type_in(&format!("{command}\n"))?;
        self.expect_timed(command, deadline)
    }

    /// The run state as QMP names it.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn status(&mut self) -> Result<String> {
        let answer = self.qmp.execute("query-status", Value::Null)?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The program's name and version, as it reports them.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn name(&mut self) -> Result<String> {
        let answer = self.qmp.execute("query-version", Value::Null)?;
        // minivmm reports a version of QEMU as well, for clients that require one.
        if let Some(package) = answer["package"].as_str().filter(|package| package.starts_with("minivmm ")) {
            return Ok(package.to_owned());
        }
        let version = &answer["qemu"];
        Ok(format!("QEMU {}.{}.{}", version["major"], version["minor"], version["micro"]))
    }

    /// Waits until the run state is `state`.
    ///
    /// # Errors
    /// When the run state is another one at `deadline`.
    pub fn await_status(&mut self, state: &str, deadline: Instant) -> Result<()> {
        loop {
            let now = self.status()?;
            if now == state {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!("the machine is {now}, not {state}")));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether a socket at `path` listens in the network namespace of `process` (`__SO_ACCEPTCON` in /proc/PID/net/unix,
/// proc(5)): its file appears earlier.
pub fn listens(process: u32, path: &Path) -> bool {
    let sockets = fs::read_to_string(format!("/proc/{process}/net/unix")).unwrap_or_default();
    let path = format!(" {}", path.display());
    sockets.lines().any(|line| line.ends_with(&path) && line.contains(" 00010000 "))
}

fn minivmm_arguments(config: &Config) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let mut arguments = vec!["run".to_owned()];
    if !config.more.iter().any(|argument| argument == "--serial") {
        arguments.extend(["--serial", "stdio"].map(str::to_owned));
    }
    let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    flag("--kernel", path(&config.kernel));
    flag("--append", config.append.clone());
    flag("--memory", format!("{}M", config.memory_mib));
    flag("--cpus", config.cpus.to_string());
    flag("--control", format!("unix:{}", path(&config.control)));
    if let Some(initrd) = &config.initrd {
        flag("--initrd", path(initrd));
    }
    if let Some(disk) = &config.disk {
        flag("--disk", path(disk));
    }
    if let Some(card) = &config.card {
        let network = match card {
            Attachment::Tap(tap) => format!("tap={tap}"),
            Attachment::Vhost(tap) => format!("tap={tap},vhost=on"),
            Attachment::Stream(socket) => format!("stream={}", path(socket)),
        };
        flag("--net", network + if config.uso { "" } else { ",uso=off" });
    }
    if let Some(uri) = &config.incoming {
        flag("--incoming", uri.clone());
    }
    arguments.extend_from_slice(&config.more);
    arguments
}

fn qemu_arguments(config: &Config, accelerator: &str) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"].map(str::to_owned).to_vec();
    let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    flag("-M", format!("microvm,acpi=on,pcie=off,ioapic2=off,auto-kernel-cmdline=off,accel={accelerator}"));
    flag("-cpu", if accelerator == "kvm" { "host".into() } else { "max".into() });
    flag("-global", "virtio-mmio.force-legacy=false".into());
    flag("-m", format!("{}M", config.memory_mib));
    flag("-smp", config.cpus.to_string());
    flag("-kernel", path(&config.kernel));
    flag("-append", config.append.clone());
    // A QEMU that is not in its installation directory looks for firmware only beside itself.
    for directory in qemu::FIRMWARE {
        flag("-L", directory.into());
    }
    flag("-chardev", "stdio,id=console,signal=off".into());
    flag("-serial", "chardev:console".into());
    flag("-qmp", format!("unix:{},server=on,wait=off", path(&config.control)));
    if let Some(initrd) = &config.initrd {
        flag("-initrd", path(initrd));
    }
    if let Some(disk) = &config.disk {
        flag("-drive", format!("id=virtio0,if=none,format=raw,file={}", path(disk)));
        flag("-device", "virtio-blk-device,drive=virtio0".into());
    }
    if let Some(card) = &config.card {
        flag(
            "-netdev",
            match card {
                Attachment::Tap(tap) => format!("tap,id=net,ifname={tap},script=no,downscript=no"),
                Attachment::Vhost(tap) => format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=on"),
                Attachment::Stream(socket) => {
                    format!("stream,id=net,server=off,addr.type=unix,addr.path={}", path(socket))
                }
            },
        );
        flag("-device", "virtio-net-device,netdev=net".into());
    }
    if let Some(uri) = &config.incoming {
        flag("-incoming", uri.clone());
    }
    arguments.extend_from_slice(&config.more);
    arguments
}

/// The part of a stream that was read so far.
#[derive(Debug, Default)]
struct Gathered {
    text: String,
    /// The time when each part was read.
    times: Vec<SystemTime>,
}

/// Collects a stream in the background; calls `line` for each whole line, with the time when it began.
fn gather(
    stream: impl Read + Send + 'static,
    mut line: impl FnMut(SystemTime, &str) + Send + 'static,
) -> (Arc<Mutex<Gathered>>, JoinHandle<()>) {
    let text = Arc::new(Mutex::new(Gathered::default()));
    let gathered = Arc::clone(&text);
    let reader = thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let (mut pending, mut begun) = (String::new(), SystemTime::UNIX_EPOCH);
        // Not by lines: a shell's prompt ends without a newline.
        while let Ok(bytes @ [_, ..]) = stream.fill_buf() {
            let now = SystemTime::now();
            let (size, chunk) = (bytes.len(), String::from_utf8_lossy(bytes).into_owned());
            stream.consume(size);
            let mut all = gathered.lock().unwrap_or_else(PoisonError::into_inner);
            all.text.push_str(&chunk);
            all.times.push(now);
            drop(all);
            if pending.is_empty() {
                begun = now;
            }
            pending.push_str(&chunk);
            if !chunk.contains('\n') {
                continue;
            }
            while let Some(end) = pending.find('\n') {
                line(begun, pending[..end].trim_end());
                pending.drain(..=end);
                begun = now;
            }
        }
    });
    (text, reader)
}

fn read(gathered: &Mutex<Gathered>) -> String {
    gathered.lock().unwrap_or_else(PoisonError::into_inner).text.clone()
}
