//! A test bench: one guest with its kernel, initrd, disk and network, and the monitors that run and receive the guest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::error::{Error, FileContext, Result};
use crate::kernel::{GUEST_MODULES, Kernel};
use crate::network::{Network, Way};
use crate::process::{Process, run};
use crate::tree::Tree;
use crate::vmm::{Attachment, Config, Program, Started, Vmm};
use crate::{guest, packages};

/// The first vsock port that monitors wait at for a migration; ports below 1024 are reserved for root.
const VSOCK_PORTS: u32 = 5000;
const DISK_SIZE: u64 = 64 << 20;
const BOOT: Duration = Duration::from_secs(180);
/// Time limit for operations that take milliseconds on an idle host.
const PROMPT: Duration = Duration::from_secs(60);

/// The guest and its load.
#[derive(Clone, Debug)]
pub struct Guest {
    /// RAM in MiB.
    pub memory_mib: u32,
    /// vCPUs.
    pub cpus: u8,
    /// What the guest's workload does.
    pub options: guest::Options,
    /// Whether the guest has a disk, on which its workload writes files.
    pub disk: bool,
}

/// Everything that the monitors of one guest share.
#[derive(Debug)]
pub struct Bench<'a> {
    directory: &'a Path,
    launcher: PathBuf,
    program: Program,
    network: Option<&'a Network>,
    way: Way,
    /// One passt for each monitor with that network; ended when the bench is dropped.
    passts: Vec<Process>,
    /// Configuration of the last monitor, except its control socket and address.
    config: Config,
    /// Migrations go to vsock addresses of this host instead of unix sockets.
    by_vsock: bool,
    started: u32,
}

impl<'a> Bench<'a> {
    /// Prepares initrd and disk in `directory`. `roles` is an executable that calls
    /// [`roles::dispatch`](crate::roles::dispatch): it is the guest's first process and our launcher. With a network,
    /// the guest has a network card.
    ///
    /// # Errors
    /// When a file cannot be made, or a tool is missing.
    pub fn new(
        directory: &'a Path,
        roles: &Path,
        program: Program,
        kernel: &Kernel,
        guest: &Guest,
        network: Option<&'a Network>,
    ) -> Result<Self> {
        let initrd = directory.join("guest.initrd");
        let mut tree = Tree::new();
        tree.program("/init", roles)?;
        kernel.add_modules(&mut tree, GUEST_MODULES);
        if guest.options.shell {
            tree.program("/bin/busybox", &packages::busybox()?)?;
        }
        tree.write(&initrd)?;
        let disk = guest.disk.then(|| make_disk(directory)).transpose()?;
        let config = Config {
            kernel: kernel.image.clone(),
            initrd: Some(initrd),
            append: format!("console=ttyS0 quiet panic=-1 {}", guest.options.command_line()),
            memory_mib: guest.memory_mib,
            cpus: guest.cpus,
            disk,
            card: None,
            uso: true,
            control: PathBuf::new(),
            incoming: None,
            more: Vec::new(),
        };
        Ok(Self {
            directory,
            launcher: roles.to_owned(),
            program,
            network,
            way: Way::Tap,
            passts: Vec::new(),
            config,
            by_vsock: false,
            started: 0,
        })
    }

    /// Boots the guest and waits until its workload runs.
    ///
    /// # Errors
    /// When the guest's workload does not start.
    pub fn boot(&mut self) -> Result<Vmm> {
        let mut vmm = self.start(None)?;
        vmm.expect("ready", Instant::now() + BOOT)?;
        Ok(vmm)
    }

    /// Starts a monitor that waits for a migration, and returns the address where it waits.
    ///
    /// # Errors
    /// When the monitor does not start.
    pub fn incoming(&mut self) -> Result<(Vmm, String)> {
        let uri = self.incoming_address();
        let mut vmm = self.start(Some(uri.clone()))?;
        vmm.await_status("inmigrate", Instant::now() + PROMPT)?;
        Ok((vmm, uri))
    }

    /// As [`incoming`](Self::incoming); `prepare` sets capabilities and parameters before the monitor waits.
    ///
    /// # Errors
    /// When the monitor does not start, or its refusal.
    pub fn incoming_prepared(&mut self, prepare: impl FnOnce(&mut Vmm) -> Result<()>) -> Result<(Vmm, String)> {
        let uri = self.incoming_address();
        let mut vmm = self.start(Some("defer".into()))?;
        prepare(&mut vmm)?;
        vmm.qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
        vmm.await_status("inmigrate", Instant::now() + PROMPT)?;
        Ok((vmm, uri))
    }

    /// The address where the next monitor can wait for a migration.
    fn incoming_address(&self) -> String {
        match self.by_vsock {
            // 1 is this host itself (vsock(7), VMADDR_CID_LOCAL).
            true => format!("vsock:1:{}", VSOCK_PORTS + self.started),
            false => format!("unix:{}", self.directory.join(format!("migration{}", self.started)).display()),
        }
    }

    /// As [`incoming`](Self::incoming), for a minivmm that makes an image of its own and receives the disk's content
    /// with the migration.
    ///
    /// # Errors
    /// When the monitor does not start, or the guest has no disk.
    pub fn incoming_with_disk(&mut self) -> Result<(Vmm, String)> {
        let Some(shared) = self.config.disk.take() else { return Err(Error::failed("the guest has no disk")) };
        let size = shared.metadata().doing("look at", &shared)?.len();
        let disk = self.directory.join(format!("disk{}.img", self.started));
        let more = self.config.more.clone();
        self.config.more.extend(["--disk".into(), format!("{},create={size}", disk.display())]);
        let started = self.incoming();
        (self.config.disk, self.config.more) = (Some(disk), more);
        started
    }

    /// Starts a monitor and connects to its control socket, without waiting for the guest.
    ///
    /// # Errors
    /// When the monitor does not start.
    pub fn start(&mut self, incoming: Option<String>) -> Result<Vmm> {
        self.config.card = self.new_card()?;
        let config = self.next(incoming);
        let vmm = Vmm::spawn(Some(&self.launcher), &self.program, &config)?;
        if let (Some(network), Some(Attachment::Tap(tap) | Attachment::Vhost(tap))) = (self.network, &config.card) {
            network.attach(tap, Instant::now() + PROMPT)?;
        }
        Ok(vmm)
    }

    /// Starts a minivmm that waits to take over a guest without a copy of its memory, and returns the address where it
    /// waits. Its control socket appears once the guest's memory has come. Its card is on the network of the last monitor,
    /// the source, which passes its tap or its connection on.
    ///
    /// # Errors
    /// When the monitor does not start.
    pub fn update(&mut self) -> Result<(Started, String)> {
        let socket = self.directory.join(format!("update{}", self.started));
        let uri = format!("local:{}", socket.display());
        let config = self.next(Some(uri.clone()));
        let started = Started::spawn(Some(&self.launcher), &self.program, &config)?;
        Ok((started.await_socket(&socket)?, uri))
    }

    /// The address of a file that a guest can be saved to for the next monitor.
    pub fn file(&self) -> String {
        format!("file:{}", self.directory.join(format!("state{}", self.started)).display())
    }

    /// The machine of the next monitor.
    fn next(&mut self, incoming: Option<String>) -> Config {
        let number = self.started;
        self.started += 1;
        let control = self.directory.join(format!("control{number}"));
        Config { control, incoming, ..self.config.clone() }
    }

    /// A connection of the next monitor's card to the network; `None` without a network.
    fn new_card(&mut self) -> Result<Option<Attachment>> {
        let Some(network) = self.network else { return Ok(None) };
        let tap = format!("tap{}", self.started);
        Ok(Some(match self.way {
            Way::Tap => Attachment::Tap(tap),
            Way::Vhost => Attachment::Vhost(tap),
            Way::Passt => {
                let socket = self.directory.join(format!("passt{}", self.started));
                self.passts.push(network.passt(&self.launcher, &socket, Instant::now() + PROMPT)?);
                Attachment::Stream(socket)
            }
        }))
    }

    /// Starts `program` as each further monitor.
    pub fn change_to(&mut self, program: Program) {
        self.program = program;
    }

    /// Passes these arguments, in the program's own form, to each further monitor as well.
    pub fn give(&mut self, more: &[&str]) {
        self.config.more = more.iter().map(|&word| word.to_owned()).collect();
    }

    /// Lets further migrations go to vsock addresses of this host.
    ///
    /// # Errors
    /// The kernel has no connections by vsock to itself.
    pub fn meet_by_vsock(&mut self) -> Result<()> {
        let loopback = Path::new("/sys/module/vsock_loopback");
        fs::metadata(loopback).doing("find", loopback)?;
        self.by_vsock = true;
        Ok(())
    }

    /// Connects the cards of further monitors to the network in this way.
    pub fn go_by(&mut self, way: Way) {
        self.way = way;
    }

    /// Gives further monitors a card without UDP segmentation, as a QEMU before 8.2 has it.
    pub fn without_uso(&mut self) {
        self.config.uso = false;
    }

    /// The configuration that the monitors are started with, except control socket, card and address.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Gives further monitors this image as the guest's disk.
    pub fn change_disk(&mut self, image: PathBuf) {
        self.config.disk = Some(image);
    }

    /// The image of the guest's disk.
    pub fn disk(&self) -> Option<&Path> {
        self.config.disk.as_deref()
    }
}

/// A raw image with an empty ext4 file system.
fn make_disk(directory: &Path) -> Result<PathBuf> {
    let disk = directory.join("disk.img");
    let image = File::create(&disk).doing("create", &disk)?;
    image.set_len(DISK_SIZE).doing("size", &disk)?;
    run(Command::new(packages::mkfs()?).args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&disk))?;
    Ok(disk)
}
