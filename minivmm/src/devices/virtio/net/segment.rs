//! Carries out the offloads of a frame that the guest sends (virtio 1.2 §5.1.6.2): fills in the checksum, and cuts a long
//! packet into segments. A tap's kernel does this itself; the other end of a stream takes finished frames only.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use super::HEADER;
use super::frame::{ETHERNET, FRAME_MAX};
use super::stream::LENGTH;

/// Least payload of a segment, as in Linux's TCP (TCP_MIN_SND_MSS, include/net/tcp.h), so that a guest cannot have a frame cut
/// into tens of thousands.
const SEGMENT_MIN: usize = 48;

/// Most bytes in front of the transport header. They are repeated in each segment, and the guest determines their number for IPv6,
/// whose extension headers are short in practice.
const HEADERS_MAX: usize = 1024;

/// Most bytes of TCP's header (RFC 9293 §3.1), which has more of them than UDP's or a fragment's.
const TRANSPORT_MAX: usize = 60;

/// Most finished frames for one frame.
const FINISHED_MAX: usize = FRAME_MAX.div_ceil(SEGMENT_MIN);

/// Most bytes of all finished frames for one frame, each behind a length of `LENGTH` bytes: less than 2 MiB.
pub(super) const FINISHED_BYTES: usize = FINISHED_MAX * (LENGTH + HEADERS_MAX + TRANSPORT_MAX + SEGMENT_MIN);

const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv6 fragment header (RFC 8200 §4.5): its protocol number and its length.
const FRAGMENT: u8 = 44;
const FRAGMENT_LEN: usize = 8;

/// Offset of TCP's flags (RFC 9293, RFC 3168), and the flags.
const TCP_FLAGS: usize = 13;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Passes the finished frames for `frame`, which has its virtio header, to `out`. `None` if the frame is malformed.
pub(super) fn finish(frame: &[u8], mut out: impl FnMut(&[u8])) -> Option<()> {
    let (header, packet) = frame.split_at_checked(HEADER)?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]).into();
    let (segment, start, offset): (usize, usize, usize) = (word(4), word(6), word(8));
    let checksum = (u32::from(header[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0).then_some((start, offset));
    let kind = u32::from(header[1]) & !VIRTIO_NET_HDR_GSO_ECN;
    let whole = || {
        let mut packet = packet.to_vec();
        checksum.map_or(Some(()), |(start, offset)| fill(&mut packet, start, offset)).map(|()| packet)
    };
    let layers = || Layers::of(packet, checksum.map(|(start, _)| start)).filter(|_| segment >= SEGMENT_MIN);
    match kind {
        VIRTIO_NET_HDR_GSO_NONE => out(&whole()?),
        VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_TCPV6 => layers()?.cut(packet, TCP, segment, out)?,
        VIRTIO_NET_HDR_GSO_UDP_L4 => layers()?.cut(packet, UDP, segment, out)?,
        VIRTIO_NET_HDR_GSO_UDP => layers()?.fragment(&whole()?, segment, out)?,
        _ => return None,
    }
    Some(())
}

/// Offsets of a packet's headers.
#[derive(Clone, Copy)]
struct Layers {
    ip: usize,
    v6: bool,
    transport: usize,
}

impl Layers {
    /// Finds the headers; `transport` is the guest's offset of the transport header, if the guest gives one.
    fn of(packet: &[u8], transport: Option<usize>) -> Option<Self> {
        const VLAN: u16 = 0x8100;
        let kind = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
        let ip = if kind(ETHERNET - 2)? == VLAN { ETHERNET + 4 } else { ETHERNET };
        let (v6, least) = match kind(ip - 2)? {
            0x0800 => (false, 20),
            0x86dd => (true, 40),
            _ => return None,
        };
        let internet = if v6 { 40 } else { usize::from(packet.get(ip)? & 0xf) * 4 };
        let transport = transport.unwrap_or(ip + internet);
        let fits = (ip + least..=HEADERS_MAX).contains(&transport)
            && (v6 || transport == ip + internet)
            && transport + 8 <= packet.len();
        fits.then_some(Self { ip, v6, transport })
    }

    /// Cuts TCP or UDP into segments with `segment` bytes of payload each.
    fn cut(self, packet: &[u8], protocol: u8, segment: usize, mut out: impl FnMut(&[u8])) -> Option<()> {
        let at = self.transport;
        let len = match protocol {
            TCP => usize::from(packet.get(at + 12)? >> 4) * 4,
            _ => 8,
        };
        if len < 8 || protocol == TCP && len < 20 {
            return None;
        }
        let (head, payload) = packet.split_at_checked(at + len)?;
        let count = payload.len().div_ceil(segment);
        for (index, payload) in payload.chunks(segment).enumerate() {
            let mut packet = [head, payload].concat();
            self.set_length(&mut packet, index);
            let checksum = if protocol == TCP {
                add32(&mut packet[at + 4..], index * segment);
                if index > 0 {
                    packet[at + TCP_FLAGS] &= !CWR;
                }
                if index + 1 < count {
                    packet[at + TCP_FLAGS] &= !FIN_PSH;
                }
                16
            } else {
                put16(&mut packet[at + 4..], len + payload.len());
                6
            };
            let pseudo = self.pseudo_header(&packet, protocol);
            put16(&mut packet[at + checksum..], usize::from(pseudo));
            fill(&mut packet, at, checksum)?;
            out(&packet);
        }
        Some(())
    }

    /// Cuts one IP packet into fragments with `size` bytes of payload each.
    fn fragment(self, packet: &[u8], size: usize, mut out: impl FnMut(&[u8])) -> Option<()> {
        /// Identification of an IPv6 packet's fragments, which is not chosen by the guest.
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let (head, payload) = packet.split_at_checked(self.transport)?;
        if self.v6 && (self.transport != self.ip + 40 || head[self.ip + 6] != UDP) {
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Offsets are counted in eight bytes.
        let size = size & !7;
        let count = payload.len().div_ceil(size);
        for (index, payload) in payload.chunks(size).enumerate() {
            let (offset, more) = (index * size, index + 1 < count);
            let mut packet = head.to_vec();
            if self.v6 {
                packet[self.ip + 6] = FRAGMENT;
                let mut header = [0; FRAGMENT_LEN];
                header[0] = UDP;
                put16(&mut header[2..], offset | usize::from(more));
                header[4..].copy_from_slice(&number.to_be_bytes());
                packet.extend(header);
            } else {
                let more = if more { 0x2000 } else { 0 };
                put16(&mut packet[self.ip + 6..], (offset / 8) | more);
            }
            packet.extend(payload);
            self.set_length(&mut packet, 0);
            out(&packet);
        }
        Some(())
    }

    /// Sets IP's length; for IPv4 also the identification, `index` after the guest's, and the header's checksum.
    fn set_length(self, packet: &mut [u8], index: usize) {
        let length = packet.len() - self.ip;
        let end = self.transport;
        let header = &mut packet[self.ip..];
        if self.v6 {
            return put16(&mut header[4..], length - 40);
        }
        put16(&mut header[2..], length);
        let number = usize::from(u16::from_be_bytes([header[4], header[5]]));
        put16(&mut header[4..], number + index);
        put16(&mut header[10..], 0);
        let checksum = !sum(&packet[self.ip..end], 0);
        put16(&mut packet[self.ip + 10..], checksum.into());
    }

    /// Sum over addresses, protocol and length, with which a transport's checksum begins (RFC 9293 §3.1, RFC 8200 §8.1).
    fn pseudo_header(self, packet: &[u8], protocol: u8) -> u16 {
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let length = (packet.len() - self.transport) as u64;
        sum(&packet[self.ip..][addresses], u64::from(protocol) + length)
    }
}

/// Completes a checksum whose field, `offset` after `start`, holds the sum of the pseudo header.
fn fill(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let checksum = match !sum(packet.get(start..)?, 0) {
        // In UDP, 0 means that there is no checksum; 0xffff is the same sum.
        0 => 0xffff,
        checksum => checksum,
    };
    let field = packet.get_mut(start + offset..)?.first_chunk_mut::<2>()?;
    *field = checksum.to_be_bytes();
    Some(())
}

/// Ones' complement sum (RFC 1071).
fn sum(bytes: &[u8], first: u64) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    let mut sum = words.iter().fold(first + last, |sum, word| sum + u64::from(u16::from_be_bytes(*word)));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Writes the low 16 bits of `value`.
fn put16(bytes: &mut [u8], value: usize) {
    bytes[..2].copy_from_slice(&(value as u16).to_be_bytes());
}

fn add32(bytes: &mut [u8], value: usize) {
    if let Some(field) = bytes.first_chunk_mut::<4>() {
        *field = u32::from_be_bytes(*field).wrapping_add(value as u32).to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest headers and the smallest segments: IPv6 with extension headers, and TCP with all of its options.
    #[test]
    fn the_largest_result_of_a_frame_is_within_its_bound() {
        let mut frame = vec![0; FRAME_MAX];
        let (start, segment) = (HEADERS_MAX as u16, SEGMENT_MIN as u16);
        frame[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        frame[1] = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
        frame[4..6].copy_from_slice(&segment.to_le_bytes());
        frame[6..8].copy_from_slice(&start.to_le_bytes());
        frame[8] = 16;
        frame[HEADER + 12..][..3].copy_from_slice(&[0x86, 0xdd, 0x60]);
        frame[HEADER + HEADERS_MAX + 12] = 0xf0;
        let mut bytes = 0;
        finish(&frame, |finished| bytes += LENGTH + finished.len()).unwrap();
        assert!((1 << 20..=FINISHED_BYTES).contains(&bytes) && FINISHED_BYTES < 2 << 20, "{bytes}");
    }
}
