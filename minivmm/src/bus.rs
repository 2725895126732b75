//! Address decoding: which device answers a port or an MMIO access.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// Device that handles accesses to a window; offsets are from the window's start, data is little-endian.
pub trait BusDevice: Send {
    /// Handles a read: fills `data`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Handles a write of `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Windows of one address space, with their devices.
#[derive(Default, Clone)]
pub struct Bus {
    windows: BTreeMap<u64, Window>,
}

#[derive(Clone)]
struct Window {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.windows.iter().map(|(base, window)| (base, window.len))).finish()
    }
}

impl Bus {
    /// Maps `device` at `base..base + len`.
    ///
    /// # Panics
    /// If the window overlaps another: the memory map is fixed at build time.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) {
        assert!(
            self.find(base).is_none() && self.windows.range(base..base + len).next().is_none(),
            "window {base:#x}+{len:#x} overlaps another"
        );
        self.windows.insert(base, Window { len, device });
    }

    /// Reads from the device at `address`; all ones where there is none, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => lock(device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `address`; ignored where there is none.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            lock(device).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (base, window) = self.windows.range(..=address).next_back()?;
        let offset = address - base;
        (offset < window.len).then_some((offset, &*window.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    #[test]
    fn decodes_by_window_and_reads_ones_elsewhere() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Mutex::new(Echo(1))));
        bus.insert(0x108, 8, Arc::new(Mutex::new(Echo(2))));
        let mut data = [0];
        bus.read(0x107, &mut data);
        assert_eq!(data, [8]);
        bus.write(0x10f, &[5]);
        bus.read(0x108, &mut data);
        assert_eq!(data, [5]);
        bus.read(0x110, &mut data);
        assert_eq!(data, [0xff]);
    }
}
