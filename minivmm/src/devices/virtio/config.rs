//! Configuration space for vCPUs: a copy, so that no read waits for the device's thread.

use std::sync::Mutex;

use crate::sync::lock;

/// Bytes of the configuration space as last published.
#[derive(Debug)]
pub struct ConfigSpace(Mutex<Vec<u8>>);

impl ConfigSpace {
    /// Makes a configuration space with these bytes.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }

    /// Replaces the bytes.
    pub fn publish(&self, bytes: Vec<u8>) {
        *lock(&self.0) = bytes;
    }

    /// Copies the bytes from `offset` on into `data`; past the end they are zero.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let bytes = lock(&self.0);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(offset + index).copied().unwrap_or(0);
        }
    }
}
