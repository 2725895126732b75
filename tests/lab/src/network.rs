//! A network of our own: a namespace with a bridge, so that source and destination may each have a tap, and nothing of
//! it is left on the machine when we end.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use crate::error::{Error, FileContext, Result};
use crate::guest::net::{GUEST, PEER};
use crate::process::Process;
use crate::{netlink, packages};

const BRIDGE: &str = "lab0";
/// Where passt sends what is for no neighbour: nobody is there.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
/// Locally administered, unicast.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];

/// How a guest's card gets to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A tap of its monitor's own is a port of the bridge.
    Tap,
    /// The same, and the kernel moves the frames between the tap and the guest.
    Vhost,
    /// A passt of its monitor's own, which speaks for the guest from the bridge's address.
    Passt,
}

/// The bridge, in the namespace of the thread that made it and of what it starts from then on.
#[derive(Debug)]
pub struct Network(());

impl Network {
    /// Moves the calling thread into a new network namespace and makes the bridge there. Without root this needs user
    /// namespaces, and a process that has no other thread yet.
    ///
    /// # Errors
    /// What the machine does not permit.
    pub fn enter() -> Result<Self> {
        let tun = Path::new("/dev/net/tun");
        OpenOptions::new().read(true).write(true).open(tun).doing("open", tun)?;
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let namespace = |error: io::Error| Error::failed(format!("no network namespace: {error}"));
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(|e| namespace(e.into()))?;
            for (file, map) in [
                ("/proc/self/setgroups", "deny".to_owned()),
                ("/proc/self/uid_map", format!("{user} {user} 1")),
                ("/proc/self/gid_map", format!("{group} {group} 1")),
            ] {
                fs::write(file, map).doing("write", Path::new(file))?;
            }
        }
        let bridge = |error: io::Error| Error::failed(format!("no network bridge: {error}"));
        netlink::up("lo").map_err(bridge)?;
        netlink::add_bridge(BRIDGE, MAC).map_err(bridge)?;
        netlink::add_address(BRIDGE, PEER).map_err(bridge)?;
        netlink::up(BRIDGE).map_err(bridge)?;
        Ok(Self(()))
    }

    /// Starts a passt that listens at `socket` and gives the guest its address; `launcher` as in [`Process::spawn`].
    ///
    /// # Errors
    /// When there is no passt, or it does not listen until `deadline`.
    pub fn passt(&self, launcher: &Path, socket: &Path, deadline: Instant) -> Result<Process> {
        let mut passt = Process::spawn(Some(launcher), &packages::passt()?, |command| {
            command.args([
                "--foreground",
                "--quiet",
                "--ipv4-only",
                "--interface",
                BRIDGE,
                "--no-map-gw",
                "--dns",
                "none",
            ]);
            // The bridge's, so that a guest that comes from a tap, or goes to one, knows the peer by one address.
            command.args(["--mac-addr", &MAC.map(|byte| format!("{byte:02x}")).join(":")]);
            command.args(["--address", &GUEST.to_string(), "--netmask", "24", "--gateway", &ROUTER.to_string()]);
            // Root's passt would become a user who cannot reach the socket's folder.
            if nix::unistd::geteuid().is_root() {
                command.args(["--runas", "0"]);
            }
            command.arg("--socket").arg(socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        })?;
        while !socket.exists() {
            if passt.ended().is_some() || Instant::now() > deadline {
                return Err(Error::failed("passt does not listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(passt)
    }

    /// Makes a tap that a monitor has made, or makes now, a port of the bridge.
    ///
    /// # Errors
    /// When it does not appear until `deadline`.
    pub fn attach(&self, tap: &str, deadline: Instant) -> Result<()> {
        while if_nametoindex(tap).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let attach = || netlink::set_bridge(tap, BRIDGE).and_then(|()| netlink::up(tap));
        attach().map_err(|error| Error::failed(format!("{tap}: {error}")))
    }
}
