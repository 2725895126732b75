//! A network of the tests' own: a network namespace with a bridge, so that source and destination can each have a tap,
//! and nothing is left on the machine afterwards.

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
/// passt's default gateway; no host has this address.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
/// MAC address of the bridge: locally administered, unicast.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 1];

/// How a guest's card is connected to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A tap of the monitor's own that is a port of the bridge.
    Tap,
    /// The same, with vhost-net moving the frames between tap and guest.
    Vhost,
    /// A passt of the monitor's own, which sends the guest's traffic from the bridge's address.
    Passt,
}

/// The bridge, in the network namespace of the thread that made it and of the processes that this thread starts
/// afterwards.
#[derive(Debug)]
pub struct Network(());

impl Network {
    /// Moves the calling thread into a new network namespace and makes the bridge there. Without root this needs user
    /// namespaces and a process with a single thread.
    ///
    /// # Errors
    /// The operation that the machine does not permit.
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
    /// When there is no passt, or it does not listen by `deadline`.
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
            // Use the bridge's MAC address, so that the peer's address stays the same for a guest that moves between
            // tap and passt.
            command.args(["--mac-addr", &MAC.map(|byte| format!("{byte:02x}")).join(":")]);
            command.args(["--address", &GUEST.to_string(), "--netmask", "24", "--gateway", &ROUTER.to_string()]);
            // Started by root, passt would switch to a user that cannot reach the socket's directory.
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

    /// Makes a tap a port of the bridge; waits until the monitor has made the tap.
    ///
    /// # Errors
    /// When the tap does not appear by `deadline`.
    pub fn attach(&self, tap: &str, deadline: Instant) -> Result<()> {
        while if_nametoindex(tap).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let attach = || netlink::set_bridge(tap, BRIDGE).and_then(|()| netlink::up(tap));
        attach().map_err(|error| Error::failed(format!("{tap}: {error}")))
    }
}
