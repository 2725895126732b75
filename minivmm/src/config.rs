//! What the user asked for, as plain data. Imports nothing of the crate.
//!
//! In the place of a path, `fd:N` or `fd:NAME` is a descriptor that the process was started with (`passed.rs`).

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

/// A whole machine, before it exists.
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
    /// Guest RAM can be handed over to another process of this host.
    pub shares_memory: bool,
    /// vCPUs, 1 to 8.
    pub cpus: u8,
    /// What each vCPU is.
    pub cpu: Cpu,
    /// virtio-blk devices, in order.
    pub disks: Vec<Disk>,
    /// File that says who may run the guest, beside its disks.
    pub lease: Option<PathBuf>,
    /// virtio-net devices, in order.
    pub nets: Vec<Net>,
    /// Where the serial console goes.
    pub serial: Serial,
    /// QMP socket: its path, or one that listens.
    pub control: Option<PathBuf>,
    /// Wait for a migration instead of booting.
    pub incoming: Option<ListenAt>,
    /// When a guest that is in a file has its memory.
    pub restore: Restore,
    /// How the connections of migrations are encrypted, until it is changed.
    pub tls: Tls,
    /// A passed `/dev/kvm`; `None`: it is opened.
    pub kvm: Option<PathBuf>,
}

/// A processor by the names of its model and of features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The model, `host` for all that the host offers.
    pub model: String,
    /// Features, and whether the guest is to see them.
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
    /// Guest and host may not write.
    pub read_only: bool,
    /// The image is made, of so many bytes, for a content that comes along with the guest.
    pub create: Option<u64>,
    /// Limits of the disk's requests.
    pub limits: RateLimits,
}

/// One virtio-net device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Where its frames go.
    pub network: Network,
    /// Guest's address; `None`: 52:54:00:12:34:56 plus the device's index, as QEMU.
    pub mac: Option<[u8; 6]>,
    /// Whether the guest is offered UDP segmentation, if the network has it; a QEMU has it from 8.2 on.
    pub uso: bool,
    /// Whether the kernel moves the frames of a tap (`/dev/vhost-net`).
    pub vhost: bool,
    /// Limits of the card's frames, in each direction.
    pub limits: RateLimits,
}

/// A network of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Tap interface, made if it does not exist; or a passed one.
    Tap(String),
    /// Unix stream socket of a process that is the network, as passt; or a passed one that is connected.
    Stream(PathBuf),
}

impl Network {
    /// What follows `=` in its flag, which may be a passed descriptor.
    pub fn name(&self) -> &Path {
        match self {
            Self::Tap(name) => Path::new(name),
            Self::Stream(path) => path,
        }
    }
}

/// How much a guest may do with a device. Without a rate there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes moved.
    pub bytes: Option<Rate>,
    /// Requests of a disk, frames of a network card.
    pub operations: Option<Rate>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Average per second.
    pub per_second: NonZeroU64,
    /// Most at once, after a time without any.
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
        /// Bytes in it at most, and in a second one called `PATH.1` with what came before; `None`: no limit.
        max: Option<u64>,
    },
    /// A new pseudo-terminal; its path is printed.
    Pty,
    /// Nowhere.
    None,
}

/// When the pages of a file come into the memory of the guest that is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restore {
    /// When the guest touches them: the file is mapped, and has to stay as it is.
    #[default]
    Lazy,
    /// Reads all pages before the guest runs.
    Eager,
}

/// Where a migration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// At a socket that is made; or in a file.
    Address(Address),
    /// At a passed one, `fd:N` or `fd:NAME`.
    Passed(PathBuf),
    /// Nowhere yet: `migrate-incoming` says where.
    Deferred,
}
