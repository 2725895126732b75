//! Backend on a Linux tap interface.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::{
    ioctl_read_bad, ioctl_readwrite_bad, ioctl_write_int_bad, ioctl_write_ptr, request_code_read, request_code_write,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};

use super::HEADER;
use super::backend::{Backend, DataPlane, Offloads, USO};
use super::{Vhost, VhostError};
use crate::memory::Ram;
use crate::passed;

// linux/if_tun.h declares TUNSETIFF and TUNSETOFFLOAD as writes of an int, although they take other arguments. TUNSETIFF also
// writes the interface's name and flags back (`__tun_chr_ioctl`, drivers/net/tun.c).
ioctl_readwrite_bad!(tunsetiff, request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
ioctl_read_bad!(tungetiff, request_code_read!(b'T', 210, size_of::<libc::c_uint>()), libc::ifreq);
ioctl_write_int_bad!(tunsetoffload, request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);

/// virtio-net's feature bits, and the matching TUN_F_* of linux/if_tun.h.
const OFFLOADS: [(u32, libc::c_int); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, 0x01),
    (VIRTIO_NET_F_GUEST_TSO4, 0x02),
    (VIRTIO_NET_F_GUEST_TSO6, 0x04),
    (VIRTIO_NET_F_GUEST_ECN, 0x08),
    (VIRTIO_NET_F_GUEST_UFO, 0x10),
    (VIRTIO_NET_F_GUEST_USO4, 0x20),
    (VIRTIO_NET_F_GUEST_USO6, 0x40),
];

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use tap interface {name:?}: {source}; {}", remedy(name))]
pub struct TapError {
    /// Name of the interface.
    pub name: String,
    /// The system's reason.
    pub source: io::Error,
}

fn remedy(name: &str) -> String {
    match passed::reference(Path::new(name)) {
        Some(_) => "pass one that was attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR".into(),
        None => format!("it needs CAP_NET_ADMIN, or `ip tuntap add dev {name} mode tap user USER`"),
    }
}

/// An attached tap interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offloads: Offloads,
    /// Data plane that moves the tap's frames, if the user wants one.
    vhost: Option<Arc<Vhost>>,
}

impl Tap {
    /// Attaches to the tap `name`, which is created if it does not exist; or takes a passed one, `fd:N` or `fd:NAME`. The
    /// host's administrator has to bring it up and connect it.
    ///
    /// # Errors
    /// [`TapError`]: no permission, in use, or name too long.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::attach(name).map_err(|source| TapError { name: name.into(), source })
    }

    /// Duplicates the attachment for the card of a machine that was reset.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, offloads: self.offloads, vhost: self.vhost.clone() })
    }

    /// Turns UDP segmentation off.
    pub fn without_uso(self) -> Self {
        Self { offloads: self.offloads.without(&USO), ..self }
    }

    /// Has the kernel move frames between the tap and the rings of a card in `ram`.
    ///
    /// # Errors
    /// [`VhostError`].
    pub fn with_vhost(self, ram: &Ram) -> Result<Self, VhostError> {
        let vhost = Arc::new(Vhost::open(&self.file, ram)?);
        ram.add_writer(vhost.clone());
        Ok(Self { vhost: Some(vhost), ..self })
    }

    fn attach(name: &str) -> io::Result<Self> {
        if let Some(reference) = passed::reference(Path::new(name)) {
            return Self::passed(reference);
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let mut ifr_name = [0; libc::IFNAMSIZ];
        if name.is_empty() || name.len() >= ifr_name.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name has 1 to 15 bytes"));
        }
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let mut request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is mutable and lives across the call; its name ends in NUL.
        unsafe { tunsetiff(file.as_raw_fd(), &raw mut request) }?;
        Self::set_up(file)
    }

    /// Takes a tap that another process attached; no interface has a colon in its name (`dev_valid_name`, net/core/dev.c).
    fn passed(reference: &str) -> io::Result<Self> {
        let file = File::from(passed::descriptor(reference)?);
        let unused = libc::__c_anonymous_ifr_ifru { ifru_flags: 0 };
        let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: unused };
        // SAFETY: TUNGETIFF writes one `ifreq`, which is mutable and lives across the call.
        let asked = unsafe { tungetiff(file.as_raw_fd(), &raw mut request) };
        asked.map_err(|_| io::Error::other("it is no tap"))?;
        // SAFETY: TUNGETIFF answers with flags; any bits of the union are flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & (wanted | libc::IFF_TUN) != wanted {
            return Err(io::Error::other("it is no tap with IFF_NO_PI and IFF_VNET_HDR"));
        }
        let status = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(status | OFlag::O_NONBLOCK))?;
        Self::set_up(file)
    }

    fn set_up(file: File) -> io::Result<Self> {
        let header = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives across the call.
        unsafe { tunsetvnethdrsz(file.as_raw_fd(), &raw const header) }?;
        let mut tap = Self { file, offloads: Offloads::default(), vhost: None };
        tap.offloads = tap.probe();
        tap.set_offloads(Offloads::default())?;
        Ok(tap)
    }

    /// Returns the largest set that this kernel supports: UDP segmentation is newer (Linux 6.2), UDP fragmentation older.
    fn probe(&self) -> Offloads {
        let without_uso = Offloads::ALL.without(&USO);
        let tries = [Offloads::ALL, without_uso, without_uso.without(&[VIRTIO_NET_F_GUEST_UFO])];
        tries.into_iter().find(|offloads| self.set_offloads(*offloads).is_ok()).unwrap_or_default()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Backend for Tap {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = OFFLOADS.iter().filter(|(bit, _)| offloads.has(*bit)).fold(0, |all, (_, flag)| all | flag);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        unsafe { tunsetoffload(self.file.as_raw_fd(), flags) }?;
        Ok(())
    }

    fn data_plane(&self) -> Option<&dyn DataPlane> {
        self.vhost.as_deref().map(|vhost| vhost as &dyn DataPlane)
    }
}
