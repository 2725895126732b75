//! Format of the backend's frames: a virtio-net header (virtio 1.2 §5.1.6), then Ethernet.

use super::HEADER;

/// Largest frame: 64 KiB of IP packet, an Ethernet header with VLAN tag, the virtio header.
pub(super) const FRAME_MAX: usize = HEADER + 18 + 65536;

/// Bytes of an Ethernet header without VLAN tag.
pub(super) const ETHERNET: usize = 14;

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// Sets `num_buffers`, the number of buffers that hold the frame.
pub(super) fn set_num_buffers(frame: &mut [u8], count: u16) {
    if let Some(field) = frame.get_mut(NUM_BUFFERS..HEADER) {
        field.copy_from_slice(&count.to_le_bytes());
    }
}

/// Makes a reverse-ARP request (RFC 903) with the guest's address, from which switches learn the new place of `mac`. QEMU sends
/// the same after a migration.
pub(super) fn announcement(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([0x80, 0x35]); // RARP
    frame.extend([0, 1, 8, 0, 6, 4, 0, 3]); // Ethernet, IPv4, their lengths, request reverse
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.resize(HEADER + 60, 0); // shortest Ethernet frame
    frame
}
