//! A real stream between two minivmms, for the test to damage, and the places of its sections.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmstate::dump::{Dump, Part};
use vmstate_lab::tiny;
use vmstate_lab::vmm::{Config, Program, Vmm};

use crate::Result;

/// Pages that the guest rewrites in each pass.
const PAGES: u64 = 64;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Section that says whose disk it is: without it a stream is like a QEMU's, and can be loaded again.
const OWNERSHIP: &str = "minivmm/ownership";
/// Bytes of a section's footer.
const FOOTER: usize = 5;

/// A device's section.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    /// Its content, without header and footer.
    pub(crate) body: Range<usize>,
}

/// A guest that was stopped while it worked: its stream, and its disk at that time.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) bytes: Vec<u8>,
    pub(crate) image: Vec<u8>,
    pub(crate) sections: Vec<Section>,
}

impl Recorded {
    /// Migrates a guest, and records what its source sent.
    pub(crate) fn make() -> Result<Self> {
        let directory = tempfile::tempdir().map_err(text)?;
        let (sent, image) = migrate(directory.path())?;
        let bytes = without(sent, OWNERSHIP)?;
        let sections = sections(&bytes)?.into_iter().map(|(section, _)| section).collect();
        Ok(Self { bytes, image, sections })
    }
}

/// Makes the configuration with this disk; both sides have the same.
pub(crate) fn config(directory: &Path, image: &[u8]) -> Result<Config> {
    let at = |name: &str| directory.join(name);
    fs::write(at("kernel"), tiny::bzimage()).map_err(text)?;
    fs::write(at("image"), image).map_err(text)?;
    Ok(Config {
        kernel: at("kernel"),
        initrd: None,
        append: tiny::command_line_with_disk(PAGES, 0),
        memory_mib: 16,
        cpus: 1,
        disk: Some(at("image")),
        card: None,
        uso: true,
        control: at("control"),
        incoming: None,
        more: Vec::new(),
    })
}

/// Migrates a guest; returns everything that the source sent, and the disk.
fn migrate(directory: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let program = Program::Minivmm(env!("CARGO_BIN_EXE_minivmm").into());
    let mut config = config(directory, &[0; 64 << 10])?;
    let mut source = Vmm::spawn(None, &program, &config).map_err(text)?;
    let deadline = Instant::now() + TIMEOUT;
    while tiny::passes(&source.console()).len() < 3 {
        if Instant::now() > deadline {
            return Err(format!("the guest does not work: {:?} {}", source.console(), source.errors()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    source.qmp.execute("stop", serde_json::Value::Null).map_err(text)?;
    // A long limit, for a busy host.
    let limit = serde_json::json!({ "downtime-limit": TIMEOUT.as_millis() as u64 });
    source.qmp.execute("migrate-set-parameters", limit).map_err(text)?;
    let (incoming_socket, between) = (directory.join("incoming"), directory.join("between"));
    (config.control, config.incoming) =
        (directory.join("control1"), Some(format!("unix:{}", incoming_socket.display())));
    let mut destination = Vmm::spawn(None, &program, &config).map_err(text)?;
    let relay = relay(&between, incoming_socket)?;
    source.start_migration(&format!("unix:{}", between.display())).map_err(text)?;
    let ended = source.follow_migration(deadline, |_| ()).map_err(text)?;
    if ended["status"] != "completed" {
        return Err(format!("the migration did not complete: {ended}"));
    }
    destination.process().kill();
    source.process().kill();
    let sent = relay.join().map_err(|_| "the relay panicked")?.map_err(text)?;
    let image = fs::read(directory.join("image")).map_err(text)?;
    Ok((sent, image))
}

/// Connects one source at `here` with `there`; returns what the source sent.
fn relay(here: &Path, there: PathBuf) -> Result<JoinHandle<io::Result<Vec<u8>>>> {
    let listener = UnixListener::bind(here).map_err(text)?;
    Ok(std::thread::spawn(move || {
        let (mut source, _) = listener.accept()?;
        let mut destination = UnixStream::connect(there)?;
        let (mut answers, mut back) = (destination.try_clone()?, source.try_clone()?);
        let backward = std::thread::spawn(move || io::copy(&mut answers, &mut back));
        let mut sent = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = source.read(&mut buffer) {
            sent.extend_from_slice(&buffer[..length]);
            destination.write_all(&buffer[..length])?;
        }
        // The destination may have closed its end.
        let _ = destination.shutdown(Shutdown::Write);
        let _ = backward.join();
        Ok(sent)
    }))
}

/// Finds the sections of devices and of the machine, each with the range of header, content and footer.
fn sections(stream: &[u8]) -> Result<Vec<(Section, Range<usize>)>> {
    let dump = Dump::read(stream);
    if let Some(damage) = dump.damage {
        return Err(format!("the stream is damaged: {damage}"));
    }
    let full = dump.sections().filter(|section| section.part == Part::Full);
    let place = |section: &vmstate::dump::SectionDump| {
        let [from, body, size] = [section.offset, section.body, section.size].map(usize::try_from);
        let (from, body, size) = (from.map_err(text)?, body.map_err(text)?, size.map_err(text)?);
        let name = section.header.idstr.to_string();
        Ok((Section { name, body: body..body + size }, from..body + size + FOOTER))
    };
    full.map(place).collect()
}

fn without(mut stream: Vec<u8>, name: &str) -> Result<Vec<u8>> {
    let sections = sections(&stream)?;
    let (_, whole) = sections.iter().find(|(section, _)| section.name == name).ok_or("the section is not there")?;
    stream.drain(whole.clone());
    Ok(stream)
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
