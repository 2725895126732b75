//! Requests in flight, each of one of several kinds.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use vmstate::VmState;

#[derive(VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "requests")]
pub(crate) struct Requests {
    requests: [Request; 32],
}

#[derive(VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "request")]
struct Request {
    tag: u16,
    phase: Phase,
    operation: Operation,
}

#[derive(Clone, Copy, VmState, Serialize, Deserialize, Encode, Decode)]
#[repr(u8)]
enum Phase {
    Queued = 0,
    Submitted = 1,
    Finished = 2,
}

#[derive(VmState, Serialize, Deserialize, Encode, Decode)]
#[repr(u8)]
enum Operation {
    Flush = 0,
    Read { sector: u64, count: u32 } = 1,
    Write { sector: u64, count: u32, force: bool } = 2,
    Discard([Extent; 2]) = 3,
}

#[derive(Clone, Copy, Default, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "extent")]
struct Extent {
    sector: u64,
    count: u32,
}

impl Requests {
    pub(crate) fn new(seed: u64) -> Self {
        let request = |n| {
            let (sector, count) = (0x2_0000 + n as u64 * 8 + seed, 8);
            Request {
                tag: n as u16 ^ seed as u16,
                phase: [Phase::Queued, Phase::Submitted, Phase::Finished][n % 3],
                operation: match n % 4 {
                    0 => Operation::Flush,
                    1 => Operation::Read { sector, count },
                    2 => Operation::Write { sector, count, force: n % 8 == 2 },
                    _ => Operation::Discard([Extent { sector, count }, Extent { sector: sector + 64, count }]),
                },
            }
        };
        Self { requests: std::array::from_fn(request) }
    }
}
