//! Commands of the control queue (virtio 1.2 §5.1.6.5), applied to the card's state.

use virtio_bindings::virtio_net::*;

use super::backend::Offloads;
use super::state::{MAC_TABLE_MAX, NetState};

/// Longest command that is read: two tables as large as any filter of Linux.
pub(super) const COMMAND_MAX: u64 = 2 * (4 + 6 * 4096) + 2;

/// Carries out class, command and payload; returns false where the answer is VIRTIO_NET_ERR. A refused command changes nothing.
pub(super) fn execute(state: &mut NetState, command: &[u8]) -> bool {
    let [class, number, payload @ ..] = command else { return false };
    let done = match u32::from(*class) {
        VIRTIO_NET_CTRL_RX => receive_mode(state, u32::from(*number), payload),
        VIRTIO_NET_CTRL_MAC => match u32::from(*number) {
            VIRTIO_NET_CTRL_MAC_TABLE_SET => mac_tables(state, payload),
            VIRTIO_NET_CTRL_MAC_ADDR_SET => payload.try_into().ok().map(|mac| state.mac = mac),
            _ => None,
        },
        VIRTIO_NET_CTRL_VLAN => vlan(state, u32::from(*number), payload),
        VIRTIO_NET_CTRL_ANNOUNCE => announced(state, u32::from(*number)),
        VIRTIO_NET_CTRL_GUEST_OFFLOADS => offloads(state, u32::from(*number), payload),
        _ => None,
    };
    done.is_some()
}

fn receive_mode(state: &mut NetState, command: u32, payload: &[u8]) -> Option<()> {
    let [on] = payload else { return None };
    let mode = match command {
        VIRTIO_NET_CTRL_RX_PROMISC => &mut state.promisc,
        VIRTIO_NET_CTRL_RX_ALLMULTI => &mut state.allmulti,
        VIRTIO_NET_CTRL_RX_ALLUNI => &mut state.alluni,
        VIRTIO_NET_CTRL_RX_NOMULTI => &mut state.nomulti,
        VIRTIO_NET_CTRL_RX_NOUNI => &mut state.nouni,
        VIRTIO_NET_CTRL_RX_NOBCAST => &mut state.nobcast,
        _ => return None,
    };
    *mode = u8::from(*on != 0);
    Some(())
}

/// Reads a unicast and a multicast table. A table that does not fit becomes "all addresses", as in QEMU.
fn mac_tables(state: &mut NetState, payload: &[u8]) -> Option<()> {
    let (unicast, rest) = mac_table(payload)?;
    let (multicast, rest) = mac_table(rest)?;
    if !rest.is_empty() {
        return None;
    }
    state.macs.clear();
    for (table, overflow) in [(unicast, &mut state.uni_overflow), (multicast, &mut state.multi_overflow)] {
        let fits = state.macs.len() + table.len() <= MAC_TABLE_MAX;
        *overflow = u8::from(!fits);
        if fits {
            state.macs.extend_from_slice(table);
        }
    }
    state.mac_count = state.macs.len() as u32;
    Some(())
}

fn mac_table(payload: &[u8]) -> Option<(&[[u8; 6]], &[u8])> {
    let (count, rest) = payload.split_first_chunk::<4>()?;
    let bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (table, rest) = rest.split_at_checked(bytes)?;
    Some((table.as_chunks().0, rest))
}

fn vlan(state: &mut NetState, command: u32, payload: &[u8]) -> Option<()> {
    let number = usize::from(u16::from_le_bytes(payload.try_into().ok()?));
    let byte = state.vlans.get_mut(number / 8)?;
    let bit = 1 << (number % 8);
    match command {
        VIRTIO_NET_CTRL_VLAN_ADD => *byte |= bit,
        VIRTIO_NET_CTRL_VLAN_DEL => *byte &= !bit,
        _ => return None,
    }
    Some(())
}

fn announced(state: &mut NetState, command: u32) -> Option<()> {
    let asked = state.status & VIRTIO_NET_S_ANNOUNCE as u16 != 0;
    if command != VIRTIO_NET_CTRL_ANNOUNCE_ACK || !asked {
        return None;
    }
    state.status &= !(VIRTIO_NET_S_ANNOUNCE as u16);
    Some(())
}

fn offloads(state: &mut NetState, command: u32, payload: &[u8]) -> Option<()> {
    let wanted = u64::from_le_bytes(payload.try_into().ok()?);
    if !state.chooses_offloads()
        || command != VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
        || wanted & !Offloads::of(state.features).0 != 0
    {
        return None;
    }
    state.curr_guest_offloads = wanted;
    Some(())
}
