//! Configuration of a machine as plain data. Imports nothing of the crate.
//!
//! In place of a path, `fd:N` or `fd:NAME` is a descriptor that the process was started with (`passed.rs`).

mod address;
mod size;
mod tls;

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use address::{Address, Descriptor};
pub use size::{NoSize, size};
pub use tls::Tls;

/// Configuration of a whole machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// bzImage or PVH ELF; `None` only with `incoming`.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// Guest RAM in bytes, a multiple of 4096, at most 64 GiB.
    pub memory: u64,
    /// Whether guest RAM can be handed over to another process of this host.
    pub shares_memory: bool,
    /// vCPUs, 1 to 8.
    pub cpus: u8,
    /// CPU model of the vCPUs.
    pub cpu: Cpu,
    /// virtio-blk devices, in order.
    pub disks: Vec<Disk>,
    /// File that records who may run the guest, in addition to its disks.
    pub lease: Option<PathBuf>,
    /// virtio-net devices, in order.
    pub nets: Vec<Net>,
    /// Output and input of the serial console.
    pub serial: Serial,
    /// QMP socket: the path of a new one, or a passed one that listens.
    pub control: Option<PathBuf>,
    /// Address at which to wait for a migration instead of booting.
    pub incoming: Option<ListenAt>,
    /// When the memory of a guest from a file is read.
    pub restore: Restore,
    /// Initial parameters of TLS for the connections of migrations.
    pub tls: Tls,
    /// A passed `/dev/kvm`; `None` opens the device.
    pub kvm: Option<PathBuf>,
}

/// CPU model and features, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The model; `host` is everything that the host offers.
    pub model: String,
    /// Features, each with whether the guest has it.
    pub features: Vec<(String, bool)>,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { model: "host".into(), features: Vec::new() }
    }
}

impl FromStr for Cpu {
    type Err = String;

    /// Reads `MODEL[,+FEATURE][,-FEATURE][,FEATURE=on|off]…`; the error is a sentence for the user.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let model = parts.next().filter(|model| !model.is_empty()).ok_or("write MODEL or MODEL,+FEATURE,-FEATURE")?;
        let feature = |part: &str| {
            let (name, on) = match (part.split_at_checked(1), part.split_once('=')) {
                (Some(("+", name)), None) | (_, Some((name, "on"))) => (name, true),
                (Some(("-", name)), None) | (_, Some((name, "off"))) => (name, false),
                (Some(_), None) => (part, true),
                _ => return Err(format!("'{part}': write +FEATURE, -FEATURE, FEATURE=on or FEATURE=off")),
            };
            Ok((name.to_owned(), on))
        };
        let features = parts.map(feature).collect::<Result<_, _>>()?;
        Ok(Self { model: model.into(), features })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.model)?;
        self.features.iter().try_for_each(|(name, on)| write!(f, ",{}{name}", if *on { '+' } else { '-' }))
    }
}

/// One virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Raw image.
    pub path: PathBuf,
    /// Neither guest nor host may write the image.
    pub read_only: bool,
    /// Size of the image to create, for a disk whose content a migration sends.
    pub create: Option<u64>,
    /// Limits of the disk's requests.
    pub limits: RateLimits,
}

/// One virtio-net device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Network that carries its frames.
    pub network: Network,
    /// MAC address; `None` is 52:54:00:12:34:56 plus the device's index, as in QEMU.
    pub mac: Option<[u8; 6]>,
    /// Whether UDP segmentation is offered if the network has it; QEMU has it from 8.2 on.
    pub uso: bool,
    /// Whether the kernel moves the frames of a tap (`/dev/vhost-net`).
    pub vhost: bool,
    /// Limits of the card's frames, in each direction.
    pub limits: RateLimits,
}

/// Network of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Tap interface, created if it does not exist; or a passed one.
    Tap(String),
    /// Unix stream socket of a process that carries the network, as passt; or a passed connected socket.
    Stream(PathBuf),
}

impl Network {
    /// Returns the text after `=` in the network's flag, which may be a passed descriptor.
    pub fn name(&self) -> &Path {
        match self {
            Self::Tap(name) => Path::new(name),
            Self::Stream(path) => path,
        }
    }
}

/// Rate limits of a device. Without a rate there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes moved.
    pub bytes: Option<Rate>,
    /// Requests of a disk, or frames of a network card.
    pub operations: Option<Rate>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Average per second.
    pub per_second: NonZeroU64,
    /// Largest number at once, after a rest.
    pub burst: NonZeroU64,
}

/// The host side of the serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// The terminal minivmm was started from, in raw mode.
    Stdio,
    /// Output to a file, no input.
    File {
        /// The file.
        path: PathBuf,
        /// Size limit of the file, and of a second file `PATH.1` with the earlier output, in bytes; `None`: no limit.
        max: Option<u64>,
    },
    /// A new pseudo-terminal; its path is printed.
    Pty,
    /// No console.
    None,
}

/// When the memory of a guest from a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restore {
    /// When the guest touches a page: the file is mapped, and must not change.
    #[default]
    Lazy,
    /// All pages before the guest runs.
    Eager,
}

/// Address at which a migration is awaited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// A new socket, or a file.
    Address(Address),
    /// The two channels of QEMU's mode `cpr-transfer`: a unix socket at which the guest's descriptors are passed, and the
    /// address of the migration.
    Transfer {
        /// Address of the migration.
        main: Address,
        /// Path of the unix socket.
        cpr: PathBuf,
    },
    /// A passed socket, pipe or file, `fd:N` or `fd:NAME`.
    Passed(PathBuf),
    /// No address yet: `migrate-incoming` gives it.
    Deferred,
}
