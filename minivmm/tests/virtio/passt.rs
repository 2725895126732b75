//! A card on a real passt: the driver asks by DHCP, and gets the configured answer.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use minivmm::devices::virtio::net::{Net, Stream};
use vmstate_lab::packages;
use vmstate_lab::process::Process;
use vmstate_lab::skip::skip;
use vmstate_lab::wait::find;

use crate::driver::{Driver, memory};
use crate::net::{MAC, MRG_RXBUF, send};
use crate::stream::{offer_all, received, unfinished};

/// A DHCPDISCOVER (RFC 2131 §2, RFC 2132 §9.6) in UDP from port 68 to 67, its checksum left to the device.
fn discover() -> Vec<u8> {
    let mut bootp = vec![1, 1, 6, 0, 0x11, 0x22, 0x33, 0x44];
    bootp.resize(28, 0);
    bootp.extend(MAC);
    bootp.resize(236, 0);
    bootp.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    bootp.resize(300, 0);
    let length = (bootp.len() as u16 + 8).to_be_bytes();
    [&[0, 68, 0, 67][..], &length, &[0, 0], &bootp].concat()
}

#[test]
fn passt_gives_the_guest_its_address() {
    let passt = match packages::passt() {
        Ok(passt) => passt,
        Err(error) => return skip(error),
    };
    let folder = tempfile::tempdir().unwrap();
    // passt becomes `nobody` if root starts it.
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("passt.sock");
    let mut command = Command::new(passt);
    command
        .args(["--foreground", "--quiet", "--ipv4-only", "--address", "203.0.113.7", "--netmask", "24"])
        .args(["--gateway", "203.0.113.1", "--mtu", "1400", "--socket"])
        .arg(&socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut process = Process::start(&mut command).unwrap();
    let stream = find("passt's socket, or its end", || match process.ended() {
        Some(status) => Some(Err(status)),
        None => Stream::open(&socket).ok().map(Ok),
    });
    let stream = match stream {
        Ok(stream) => stream,
        Err(status) => return skip(format_args!("passt ended ({status}): it needs an interface with a default route")),
    };
    let mut driver = Driver::new(Net::new(stream, MAC), memory());
    driver.start(MRG_RXBUF);
    offer_all(&mut driver);
    send(&mut driver, &unfinished(0, 0, false, 17, &discover()), 1000);
    // passt may send other frames first.
    let offer = find("an answer by DHCP", || {
        let frame = received(&mut driver);
        (frame[12..14] == [8, 0] && frame[23] == 17 && frame[34..38] == [0, 67, 0, 68]).then_some(frame)
    });
    assert_eq!(offer[..6], MAC);
    let bootp = &offer[42..];
    assert_eq!((bootp[0], &bootp[4..8]), (2, &[0x11, 0x22, 0x33, 0x44][..]), "an answer to this question");
    assert_eq!(bootp[16..20], [203, 0, 113, 7], "the guest's address");
    let options = &bootp[240..];
    let has = |option: &[u8]| options.windows(option.len()).any(|window| window == option);
    assert!(has(&[53, 1, 2]), "an offer: {options:?}");
    assert!(has(&[3, 4, 203, 0, 113, 1]), "the router: {options:?}");
    assert!(has(&[26, 2, 5, 120]), "an MTU of 1400: {options:?}");
}
