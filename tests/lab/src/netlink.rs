//! Configures network interfaces through rtnetlink: up, address, bridge. A guest needs no other tool for that.
//!
//! Message layout: the kernel's uapi headers linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const REQUEST_ACK: u16 = 0x1 | 0x4;
const CREATE_EXCLUSIVE: u16 = 0x400 | 0x200;
const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Brings an interface up.
///
/// # Errors
/// The kernel's error.
pub fn up(name: &str) -> io::Result<()> {
    request(RTM_NEWLINK, 0, &link(if_nametoindex(name)?, IFF_UP))
}

/// Gives an interface an address with a 24-bit network.
///
/// # Errors
/// The kernel's error.
pub fn add_address(name: &str, address: Ipv4Addr) -> io::Result<()> {
    const AF_INET: u8 = 2;
    let mut payload = vec![AF_INET, 24, 0, 0];
    payload.extend(if_nametoindex(name)?.to_ne_bytes());
    attribute(&mut payload, IFA_LOCAL, &address.octets());
    request(RTM_NEWADDR, CREATE_EXCLUSIVE, &payload)
}

/// Makes a bridge with a fixed MAC address: by default a bridge takes the lowest address of its ports, which changes
/// with them.
///
/// # Errors
/// The kernel's error.
pub fn add_bridge(name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut payload = link(0, 0);
    attribute(&mut payload, IFLA_ADDRESS, &mac);
    attribute(&mut payload, IFLA_IFNAME, name.as_bytes());
    let mut kind = Vec::new();
    attribute(&mut kind, IFLA_INFO_KIND, b"bridge");
    attribute(&mut payload, IFLA_LINKINFO, &kind);
    request(RTM_NEWLINK, CREATE_EXCLUSIVE, &payload)
}

/// Makes an interface a port of a bridge.
///
/// # Errors
/// The kernel's error.
pub fn set_bridge(name: &str, bridge: &str) -> io::Result<()> {
    let mut payload = link(if_nametoindex(name)?, 0);
    attribute(&mut payload, IFLA_MASTER, &if_nametoindex(bridge)?.to_ne_bytes());
    request(RTM_NEWLINK, 0, &payload)
}

/// `struct ifinfomsg`: family, padding, type, index, flags, mask of flags to change.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut payload = vec![0; 4];
    for word in [index, flags, flags] {
        payload.extend(word.to_ne_bytes());
    }
    payload
}

fn attribute(payload: &mut Vec<u8>, kind: u16, value: &[u8]) {
    payload.extend((value.len() as u16 + 4).to_ne_bytes());
    payload.extend(kind.to_ne_bytes());
    payload.extend(value);
    payload.resize(payload.len().next_multiple_of(4), 0);
}

fn request(kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let mut message = (payload.len() as u32 + 16).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST_ACK | flags).to_ne_bytes());
    message.extend([0; 8]); // sequence number and port, unused with one request on one socket
    message.extend(payload);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let size = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // The answer is a struct nlmsghdr, then a struct nlmsgerr whose first member is 0 or -errno.
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if size < 20 || kind != NLMSG_ERROR {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink: unexpected answer"));
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
