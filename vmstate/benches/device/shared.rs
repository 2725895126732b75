//! A hub of ports whose state threads share: registers behind a lock, atomic counters and flags.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use vmstate::VmState;

#[derive(VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "hub")]
pub(crate) struct Ports {
    ports: [Port; 16],
}

#[derive(Default, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "port")]
struct Port {
    registers: Arc<Mutex<Registers>>,
    address: Arc<RwLock<Address>>,
    pending: Arc<AtomicU32>,
    mask: Arc<AtomicU64>,
    index: Arc<AtomicU16>,
    enabled: Arc<AtomicBool>,
}

#[derive(Default, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "registers")]
struct Registers {
    control: u32,
    status: u16,
    data: [u32; 8],
}

#[derive(Default, VmState, Serialize, Deserialize, Encode, Decode)]
#[vmstate(name = "address")]
struct Address {
    base: u64,
    length: u32,
}

impl Ports {
    pub(crate) fn new(seed: u64) -> Self {
        let port = |n| {
            let registers = Registers { control: 0x8000_0001, status: n as u16, data: [0x1234_5678 ^ seed as u32; 8] };
            Port {
                registers: Arc::new(Mutex::new(registers)),
                address: Arc::new(RwLock::new(Address { base: 0x0600_0000 + n as u64 * 4096 + seed, length: 4096 })),
                pending: Arc::new(AtomicU32::new(n as u32)),
                mask: Arc::new(AtomicU64::new(!seed)),
                index: Arc::new(AtomicU16::new((1234 + seed) as u16)),
                enabled: Arc::new(AtomicBool::new(n % 3 != 0)),
            }
        };
        Self { ports: std::array::from_fn(port) }
    }
}
