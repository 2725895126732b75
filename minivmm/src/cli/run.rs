//! `minivmm run`: the flags of a machine, and the configuration that results from them.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};

use crate::cli::tls::TlsArgs;
use crate::cli::values::IncomingValue;
use crate::cli::{UsageError, values};
use crate::config::{Address, Config, Cpu, Disk, ListenAt, Net, Restore, Serial};
use crate::error::print_message;
use crate::files::{self, Fit, Mode};
use crate::log::Log;
use crate::passed;

/// Number of virtio-mmio windows, as in QEMU's `microvm` without a second IOAPIC.
const VIRTIO_WINDOWS: usize = 8;

/// Flags of `minivmm run`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Instead of a file, a tap or a socket, fd:N names a descriptor that minivmm was started with, \
and fd:NAME one that systemd passed under this name (docs/sandbox.md). A file of such a name is ./fd:N.

Exit codes:
  0  the guest powered off, or somebody ended the machine: minivmm quit, Ctrl-A x, a signal
  1  the machine or its incoming migration failed; the sentence says why
  2  the command line is wrong, a file is missing, or the machine cannot be built

Examples:
  minivmm run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 1G --disk root.raw
  minivmm run --config vm.toml --net stream=/run/user/1000/passt.sock --control unix:/run/vm/qmp
  minivmm run --config vm.toml --incoming unix:/run/vm/move")]
pub struct RunArgs {
    /// TOML file with options of this command as keys, as memory = "1G" and disk = ["a.raw", "b.raw,readonly"], for both sides
    /// of a migration. An option on the command line overrides the file's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Linux kernel: a bzImage or an ELF image with a PVH entry
    #[arg(long, value_name = "FILE", required_unless_present = "incoming")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Guest RAM, with K, M or G: 1M to 64G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = values::memory)]
    memory: u64,
    /// Keep guest RAM in shared memory (memfd), so that the machine can hand it over to a new minivmm on this host (minivmm
    /// migrate --local). A machine with --incoming local:PATH does so always
    #[arg(long, value_name = "on|off", default_value = "off", value_parser = values::switch, action = ArgAction::Set)]
    share_memory: bool,
    /// Number of vCPUs: 1 to 8
    #[arg(long, value_name = "N", default_value = "1", value_parser = values::cpus)]
    cpus: u8,
    /// CPU model of each vCPU: host for all that the host offers, or a model by name, with features switched on and off:
    /// MODEL[,+FEATURE][,-FEATURE]
    #[arg(long, value_name = "MODEL", default_value = "host", value_parser = values::cpu)]
    cpu: Cpu,
    /// virtio-blk device on a raw image: FILE[,readonly][,LIMIT…]; may be repeated. FILE,create=SIZE creates the image, for a
    /// guest that arrives with its disk's content (minivmm migrate --copy-disk). Limits: bytes-per-second=SIZE and
    /// ops-per-second=N (requests); bytes-burst=SIZE and ops-burst=N may pass at once after a rest
    #[arg(long = "disk", value_name = "FILE", value_parser = values::disk)]
    disks: Vec<Disk>,
    /// File that records which process may run the guest, for guests without a writable disk and for disks on block devices or
    /// file systems without extended attributes: created if it does not exist, the same file at both sides of a migration
    #[arg(long, value_name = "FILE")]
    lease: Option<PathBuf>,
    /// virtio-net device on a tap interface, or on the unix socket of passt or of another process that carries the network:
    /// tap=NAME, tap=fd:N, stream=PATH or stream=fd:N, and [,mac=XX:XX:XX:XX:XX:XX][,uso=off][,vhost=on][,LIMIT…]; may be
    /// repeated. uso=off leaves out UDP segmentation, which a QEMU before 8.2 lacks. vhost=on has the kernel move a tap's
    /// frames (/dev/vhost-net). Limits as for --disk, counting frames, for each direction
    #[arg(long = "net", value_name = "tap=NAME|stream=PATH", value_parser = values::net)]
    nets: Vec<Net>,
    /// Serial console: stdio, file:PATH[,max=SIZE], fd:N (output only), pty or none. With max, PATH and PATH.1 together keep
    /// the end of the output, at most SIZE bytes each
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = values::serial)]
    serial: Serial,
    /// QMP socket: unix:PATH to create it, or fd:N for a passed one that listens
    #[arg(long, value_name = "unix:PATH", value_parser = values::control_here)]
    control: Option<PathBuf>,
    /// Serve metrics for Prometheus at this address, as /metrics: unix:PATH, or tcp:127.0.0.1:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = str::parse::<Address>)]
    metrics: Option<Address>,
    /// Log to standard error, an event a line: error, warn, info, debug or trace; json or json:LEVEL for lines of JSON
    #[arg(long, value_name = "LEVEL|json", value_parser = str::parse::<Log>)]
    log: Option<Log>,
    /// Wait for a migration instead of booting, at unix:PATH, tcp:HOST:PORT (without HOST: 127.0.0.1), vsock:CID:PORT, or at a
    /// passed socket that listens, fd:N. Or take the guest over a passed connected socket, fd:N, or over the standard input and
    /// output of a command, exec:COMMAND. Or run the guest of a file, file:PATH[,offset=N], or of a passed pipe or file, fd:N.
    /// With defer, QMP's migrate-incoming gives the address later. Given twice, as for QEMU's mode cpr-transfer: an address, and
    /// {"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":PATH}} for the guest's memory
    #[arg(long, value_name = "ADDRESS", value_parser = values::incoming)]
    incoming: Vec<IncomingValue>,
    /// When the memory of a guest from a file is read: lazy, each page when the guest touches it, so that the guest runs at
    /// once, and the file has to stay as it is; or eager, all of it before the guest runs, so that the file may be written or
    /// removed then
    #[arg(long, value_name = "eager|lazy", default_value = "lazy", value_parser = values::restore)]
    restore: Restore,
    /// Passed descriptor of /dev/kvm, for a user who may not open it: fd:N
    #[arg(long, value_name = "fd:N", value_parser = values::descriptor)]
    kvm: Option<PathBuf>,
    /// Confine each thread to the system calls that it needs, without capabilities: on, or off to debug the process
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = values::switch, action = ArgAction::Set)]
    sandbox: bool,
    /// Parameters of TLS.
    #[command(flatten, next_help_heading = "How migrations are encrypted")]
    tls: TlsArgs,
}

impl RunArgs {
    /// Whether the machine runs in the sandbox.
    pub fn confined(&self) -> bool {
        self.sandbox
    }

    /// Address at which metrics are served.
    pub fn metrics(&self) -> Option<Address> {
        self.metrics.clone()
    }

    /// Level and format of the log.
    pub fn log(&self) -> Option<Log> {
        self.log
    }

    /// Takes the passed descriptors that flags name.
    fn take_descriptors(&self) -> Result<(), UsageError> {
        let serial = match &self.serial {
            Serial::File { path, .. } => Some(path.as_path()),
            Serial::Stdio | Serial::Pty | Serial::None => None,
        };
        let incoming = self.incoming.iter().find_map(|value| match value {
            IncomingValue::Main(ListenAt::Passed(path)) => Some(path.as_path()),
            _ => None,
        });
        let disks = self.disks.iter().map(|disk| ("--disk", Some(disk.path.as_path())));
        let nets = self.nets.iter().map(|net| ("--net", Some(net.network.name())));
        let named = [
            ("--kvm", self.kvm.as_deref()),
            ("--kernel", self.kernel.as_deref()),
            ("--initrd", self.initrd.as_deref()),
            ("--lease", self.lease.as_deref()),
            ("--serial", serial),
            ("--control", self.control.as_deref()),
            ("--incoming", incoming),
        ];
        let named = named.into_iter().chain(disks).chain(nets);
        let uses: Vec<_> = named.filter_map(|(flag, path)| Some((flag, passed::reference(path?)?))).collect();
        for (number, name) in passed::take(&uses).map_err(UsageError)? {
            print_message(format_args!("descriptor {number} ({name}) was passed, and no flag names it: it is closed"));
        }
        Ok(())
    }

    /// The machine these flags describe.
    ///
    /// # Errors
    /// A file that cannot be opened as its use needs, or more devices than the machine has room for.
    pub fn into_config(self) -> Result<Config, UsageError> {
        // Before any file is opened, which could get the number of a missing descriptor.
        self.take_descriptors()?;
        let devices = self.disks.len() + self.nets.len();
        if devices > VIRTIO_WINDOWS {
            return Err(UsageError(format!(
                "--disk, --net: {devices} devices, but the machine has room for {VIRTIO_WINDOWS}; leave some out"
            )));
        }
        let incoming = values::incoming_of(&self.incoming).map_err(|why| UsageError(format!("--incoming: {why}")))?;
        if incoming == Some(ListenAt::Deferred) && self.control.is_none() {
            let what = "--incoming defer: without a QMP socket the address cannot be given; give --control as well";
            return Err(UsageError(what.into()));
        }
        if let Some(kernel) = &self.kernel {
            let remedy = "give a Linux bzImage or an ELF image with a PVH entry";
            must_open("--kernel", kernel, Mode::Read, Fit::Regular, remedy)?;
        }
        if let Some(initrd) = &self.initrd {
            must_open("--initrd", initrd, Mode::Read, Fit::Regular, "give an initial RAM disk")?;
        }
        for disk in &self.disks {
            if disk.create.is_some() {
                if incoming.is_none() {
                    let what = "create= is for a disk whose content a migration sends: give --incoming as well, or make the image \
                                before (truncate -s SIZE FILE)";
                    return Err(UsageError(format!("--disk {}: {what}", disk.path.display())));
                }
                continue;
            }
            let (mode, remedy) = match disk.read_only {
                true => (Mode::Read, "give a raw disk image"),
                false => (Mode::ReadWrite, "give a raw disk image that may be written, or add ,readonly"),
            };
            must_open("--disk", &disk.path, mode, Fit::Disk, remedy)?;
        }
        let is_there = |lease: &&Path| lease.exists() || passed::reference(lease).is_some();
        if let Some(lease) = self.lease.as_deref().filter(is_there) {
            let remedy = "give a file that may be written, or a path that is free";
            must_open("--lease", lease, Mode::ReadWrite, Fit::Regular, remedy)?;
        }
        Ok(self.config())
    }

    /// Builds the configuration without looking at the files.
    pub(super) fn config(self) -> Config {
        Config {
            kernel: self.kernel,
            initrd: self.initrd,
            append: self.append,
            memory: self.memory,
            shares_memory: self.share_memory,
            cpus: self.cpus,
            cpu: self.cpu,
            disks: self.disks,
            lease: self.lease,
            nets: self.nets,
            serial: self.serial,
            control: self.control,
            // Checked before by those who start a machine.
            incoming: values::incoming_of(&self.incoming).unwrap_or_default(),
            restore: self.restore,
            tls: self.tls.parameters(),
            kvm: self.kvm,
        }
    }
}

/// Reports early, and by the flag's name, a file that the machine could not open later.
fn must_open(flag: &str, path: &Path, mode: Mode, fit: Fit, remedy: &str) -> Result<(), UsageError> {
    match files::open(path, mode, fit) {
        Ok(_) => Ok(()),
        Err(problem) => Err(UsageError(format!("{flag} {}: {problem}; {remedy}", path.display()))),
    }
}
