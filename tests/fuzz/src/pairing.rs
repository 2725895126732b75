//! Target: connections that may be page channels, and their packets in any order. Which connections belong to the
//! migration, when a flush is complete, and which channel was closed too early, must be as a naive list of all packets
//! says.
//!
//! ```text
//! steps: kind | channel | number of the packet, and
//!   kind % 8 = 0: a connection: the meaningful 25 bytes of its opening, then a SYNC of that number
//!   kind % 8 = 1: as 0, with the magic, the version and a uuid of which each byte is the next one
//!   kind % 8 = 2, 3, 4: a packet of the channel, a SYNC for 2
//!   kind % 8 = 5: the channel is closed
//!   kind % 8 = 6, 7: the main channel reaches a flush
//! ```

use std::collections::BTreeSet;

use vmstate::raw::multifd::{OPENING, Opening, Pairing};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "pairing", memory: 1 << 20, body, seeds };

/// Number of meaningful bytes of an opening: magic, version, uuid and channel number.
const MEANT: usize = 25;
const HEAD: [u8; 8] = [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1];

/// A channel of the migration.
struct Channel {
    id: u8,
    uuid: [u8; 16],
    syncs: u64,
    closed: bool,
}

#[derive(Default)]
struct Naive {
    channels: Vec<Channel>,
    /// The numbers of all packets.
    packets: BTreeSet<u64>,
    flushes: u64,
}

impl Naive {
    /// Whether the connection belongs to the migration.
    fn joins(&mut self, uuid: [u8; 16], id: u8, number: u64) -> bool {
        let stranger = self.channels.iter().any(|channel| channel.id == id || channel.uuid != uuid);
        let joins = !stranger && number < 256 && self.packets.insert(number);
        if joins {
            self.channels.push(Channel { id, uuid, syncs: 1, closed: false });
        }
        joins
    }

    /// Whether the next flush is complete; `None` when a channel was closed before its SYNC.
    fn passes(&mut self) -> Option<bool> {
        let behind = |channel: &Channel| channel.syncs <= self.flushes;
        if self.channels.iter().any(|channel| channel.closed && behind(channel)) {
            return None;
        }
        let all_there = !self.channels.is_empty() && !self.channels.iter().any(behind);
        let gapless = self.packets.iter().copied().eq(0..self.packets.len() as u64);
        let passes = self.flushes == 0 || (all_there && gapless);
        self.flushes += u64::from(passes);
        Some(passes)
    }
}

fn body(mut input: &[u8]) {
    let (mut pairing, mut naive) = (Pairing::default(), Naive::default());
    while let Some((&[what, id, number], rest)) = input.split_first_chunk() {
        input = rest;
        let number = u64::from(number) + if what & 0x80 == 0 { 0 } else { 200 };
        match what % 8 {
            0 => {
                let Some((meant, rest)) = input.split_first_chunk::<MEANT>() else { return };
                input = rest;
                connect(meant, number, &mut pairing, &mut naive);
            }
            1 => {
                let Some((&uuid, rest)) = input.split_first() else { return };
                input = rest;
                let meant = [&HEAD[..], &[uuid; 16], &[id]].concat();
                connect(meant.as_slice().try_into().expect("25 bytes"), number, &mut pairing, &mut naive);
            }
            2..=4 => {
                // Only an open channel of the migration has further packets.
                let Some(channel) = naive.channels.iter_mut().find(|channel| channel.id == id && !channel.closed)
                else {
                    continue;
                };
                let sync = what % 8 == 2;
                let taken = pairing.add(id, number, sync);
                assert_eq!(taken.is_ok(), naive.packets.insert(number), "{taken:?}");
                channel.syncs += u64::from(taken.is_ok() && sync);
            }
            5 => {
                pairing.close(id);
                naive.channels.iter_mut().filter(|channel| channel.id == id).for_each(|channel| channel.closed = true);
            }
            _ => assert_eq!(pairing.pass().ok(), naive.passes(), "flush {}", naive.flushes),
        }
        assert_eq!((pairing.channels(), pairing.flushes()), (naive.channels.len(), naive.flushes));
    }
}

fn connect(meant: &[u8; MEANT], number: u64, pairing: &mut Pairing, naive: &mut Naive) {
    let mut opening = [0xee; OPENING];
    opening[..MEANT].copy_from_slice(meant);
    let (uuid, id) = (meant[8..24].try_into().expect("16 bytes"), meant[24]);
    let read = Opening::read(&opening).ok();
    let expected = (meant[..8] == HEAD).then_some(Opening { uuid, id });
    assert_eq!(read, expected, "differs from the naive reader");
    if let Some(opening) = read {
        let joined = pairing.join(opening, number);
        assert_eq!(joined.is_ok(), naive.joins(uuid, id, number), "{joined:?}");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let raw = |version: u8, uuid: u8, id: u8| [&HEAD[..7], &[version], &[uuid; 16], &[id]].concat();
    vec![
        // Two channels, a connection of another migration, one of an unknown version, and one that connects twice.
        [
            &[0, 0, 0][..],
            &raw(1, 5, 0),
            &[0, 1, 1],
            &raw(1, 5, 1),
            &[0, 0, 9],
            &raw(1, 6, 2),
            &[0, 0, 9],
            &raw(2, 5, 2),
        ]
        .concat(),
        vec![1, 0, 0, 5, 1, 1, 1, 5, 6, 0, 0, 3, 0, 2, 2, 0, 3, 6, 0, 0, 2, 1, 4, 6, 0, 0, 5, 1, 0, 6, 0, 0],
        vec![6, 0, 0, 1, 0, 1, 5, 6, 0, 0, 1, 1, 0, 5, 1, 1, 2, 6, 0x81, 2, 100, 5, 2, 0, 2, 2, 1, 3, 6, 0, 0],
    ]
}
