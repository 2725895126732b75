//! QEMU, or minivmm in its place, with the tiny guest, and checks of the guest's output.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmstate_lab::error::{Error, Result};
use vmstate_lab::vmm::{Config, Program, Vmm};
use vmstate_lab::{qemu, skip, tiny};
use vmstate_tests::stream_parser::{Value, parse};

use crate::place::{self, scratch};
use crate::world::{ANSWER, MIGRATION, ensure, within};

/// Guest RAM.
pub(super) const RAM_MIB: u64 = 16;
/// Number of pages that the guest rewrites in each pass: 1 MiB.
const PAGES: u64 = 256;
/// Time from the start of a pass to that of the next, in 65536 ticks of the time stamp counter: some 10 ms.
const SPAN: u64 = 0x200;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Number of further passes after which the guest counts as running.
pub(super) const PASSES: u64 = 3;

/// QEMU's options for a network card without a backend.
pub(super) const CARD: [&str; 2] = ["-device", "virtio-net-device"];

/// The machines of one case, which share a directory and a disk.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) directory: PathBuf,
    pub(super) disk: PathBuf,
    qemu: Program,
    config: Config,
    started: usize,
}

impl Peer {
    /// Machines of QEMU with this accelerator.
    ///
    /// # Errors
    /// When QEMU is missing or older than the cases need.
    pub(super) fn new(directory: &Path, accelerator: &'static str) -> Result<Self> {
        let qemu = Program::Qemu(qemu::at_least(qemu::NEEDED)?, accelerator);
        let (kernel, disk) = (directory.join("tiny"), directory.join("disk"));
        fs::write(&kernel, tiny::bzimage()).map_err(failed)?;
        fs::write(&disk, [0; 1 << 20]).map_err(failed)?;
        let config = Config {
            kernel,
            initrd: None,
            append: tiny::command_line(PAGES, SPAN),
            memory_mib: RAM_MIB as u32,
            cpus: 1,
            disk: Some(disk.clone()),
            card: None,
            uso: true,
            control: PathBuf::new(),
            incoming: None,
            more: Vec::new(),
        };
        Ok(Self { directory: directory.to_owned(), disk, qemu, config, started: 0 })
    }

    /// Boots the guest in QEMU.
    pub(super) fn boot(&mut self, more: &[&str]) -> Result<Vmm> {
        let program = self.qemu.clone();
        self.start(&program, None, |config| config.more = words(more))
    }

    /// A QEMU that waits for a migration, and its address.
    pub(super) fn wait(&mut self, more: &[&str]) -> Result<(Vmm, String)> {
        let program = self.qemu.clone();
        self.wait_as(&program, |config| config.more = words(more))
    }

    /// Boots the guest in another monitor.
    pub(super) fn boot_as(&mut self, program: &Program) -> Result<Vmm> {
        self.start(program, None, |_| ())
    }

    /// Another monitor that waits for a migration, and its address; `change` modifies its configuration.
    pub(super) fn wait_as(&mut self, program: &Program, change: impl FnOnce(&mut Config)) -> Result<(Vmm, String)> {
        let uri = format!("unix:{}", self.directory.join(format!("incoming{}", self.started)).display());
        let mut vmm = self.start(program, Some(uri.clone()), change)?;
        vmm.await_status("inmigrate", within(TIMEOUT))?;
        Ok((vmm, uri))
    }

    /// Loads `stream` in a QEMU.
    ///
    /// # Errors
    /// When QEMU refuses the stream; the error contains QEMU's output.
    pub(super) fn incoming(&mut self, stream: &[u8], more: &[&str]) -> Result<Vmm> {
        let file = self.directory.join("stream");
        fs::write(&file, stream).map_err(failed)?;
        let program = self.qemu.clone();
        self.start(&program, Some(format!("file:{}", file.display())), |config| config.more = words(more))
    }

    fn start(&mut self, program: &Program, incoming: Option<String>, change: impl FnOnce(&mut Config)) -> Result<Vmm> {
        let mut config = Config {
            control: self.directory.join(format!("control{}", self.started)),
            incoming,
            ..self.config.clone()
        };
        change(&mut config);
        self.started += 1;
        Vmm::spawn(Some(place::lab()), program, &config)
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The passes that the guest has counted on this machine.
///
/// # Errors
/// When the guest found its memory wrong.
pub(super) fn passes(vmm: &Vmm) -> Result<Vec<u64>> {
    let console = vmm.console();
    ensure(!console.contains('E'), || format!("the guest found its memory wrong: {console}"))?;
    Ok(tiny::passes(&console))
}

/// Number of the last pass that the guest has made on this machine; 0 before the first.
pub(super) fn last_pass(vmm: &Vmm) -> Result<u64> {
    Ok(passes(vmm)?.last().copied().unwrap_or(0))
}

/// Migrates; returns the final status.
pub(super) fn migrate(source: &mut Vmm, uri: &str) -> Result<String> {
    source.start_migration(uri)?;
    let info = source.follow_migration(within(MIGRATION), |_| ())?;
    Ok(info["status"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the guest has reached `pass`.
pub(super) fn await_pass(vmm: &Vmm, pass: u64) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while last_pass(vmm)? < pass {
        ensure(Instant::now() < deadline, || {
            format!("the guest does not reach pass {pass}; console {:?}; monitor {:?}", vmm.console(), vmm.errors())
        })?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until QEMU has loaded a machine and is in this run state.
pub(super) fn arrives(qemu: &mut Vmm, state: &str) -> Result<()> {
    qemu.await_status(state, within(ANSWER)).map_err(|error| {
        let end = qemu.wait_end(within(ANSWER)).map_or_else(failed, failed);
        failed(format!("{error}; QEMU: {end}, its output: {}", qemu.errors()))
    })
}

/// The guest's register R10, which counts the passes done.
pub(super) const DONE: usize = 10;
/// The guest's register R11, the time stamp at which the pass began.
pub(super) const BEGAN: usize = 11;

/// A general register of the guest, in encoding order, from a stream.
pub(super) fn register(stream: &[u8], number: usize) -> Result<u64> {
    let stream = parse(stream).map_err(failed)?;
    let registers = stream.device("cpu", 0).and_then(|cpu| cpu.fields.value(&["env.regs"]));
    match registers {
        Some(Value::Array(registers)) if let Some(Value::Unsigned(value)) = registers.get(number) => Ok(*value),
        _ => Err(failed("no general registers in the stream")),
    }
}

/// Saves a machine to a file, and returns the stream.
pub(super) fn to_file(vmm: &mut Vmm, file: &Path) -> Result<Vec<u8>> {
    vmm.start_migration(&format!("file:{}", file.display()))?;
    let info = vmm.follow_migration(within(MIGRATION), |_| ())?;
    ensure(info["status"] == "completed", || format!("the machine was not saved: {info}"))?;
    fs::read(file).map_err(failed)
}

/// Checks that the guest goes on counting from its pass in `stream`, with correct memory.
pub(super) fn goes_on(vmm: &Vmm, stream: &[u8]) -> Result<()> {
    let done = register(stream, DONE)?;
    await_pass(vmm, done + PASSES)?;
    let counted = passes(vmm)?;
    let first = counted.first().copied().unwrap_or(0);
    // The line of the last pass done may be still to come, be printed already, or be cut in two.
    let in_turn = counted.windows(2).all(|two| two[1] == two[0] + 1) && (done..=done + 1).contains(&first);
    ensure(in_turn, || format!("{done} passes were done, then the guest counted {counted:?}"))
}

/// Lets the guest power the machine off, through one of its devices.
pub(super) fn power_off(mut vmm: Vmm) -> Result<()> {
    vmm.type_in("q")?;
    let status = vmm.wait_end(within(ANSWER))?;
    ensure(status.success(), || format!("QEMU ended with {status}: {}", vmm.errors()))
}

/// Runs a case on QEMU's TCG, which needs no KVM, but a QEMU with this release's sections.
pub(super) fn on_tcg(body: impl FnOnce(&mut Peer) -> Result<()>) {
    let directory = scratch().unwrap();
    match Peer::new(directory.path(), "tcg") {
        Ok(mut peer) => body(&mut peer).unwrap_or_else(|error| panic!("{error}")),
        Err(error) => skip::skip(error),
    }
}

pub(super) fn failed(error: impl ToString) -> Error {
    Error::failed(error.to_string())
}
