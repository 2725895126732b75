//! Streams of a machine "toy" without memory, assembled by hand.

// Each test uses only a part of it.
#![allow(dead_code)]

use std::io;
use std::time::Duration;

use vmstate::channel::Channel;
use vmstate::codec::{Limits, Strictness};
use vmstate::error::Result;
use vmstate::migrate::snapshot;
use vmstate::ram::{GuestRam, RamBlock};
use vmstate::section::Sections;

/// A file in memory that returns at most a given number of bytes at once, as a socket would.
pub(crate) struct Tape {
    pub(crate) bytes: Vec<u8>,
    pub(crate) read: usize,
    pub(crate) at_once: usize,
}

impl Tape {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), read: 0, at_once: usize::MAX }
    }
}

impl Channel for Tape {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn receive(&mut self, into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        let rest = &self.bytes[self.read..];
        let count = rest.len().min(into.len()).min(self.at_once);
        into[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

pub(crate) struct NoRam;

impl GuestRam for NoRam {
    fn blocks(&self) -> &[RamBlock] {
        &[]
    }

    fn read(&self, _: usize, _: u64, _: &mut [u8]) -> Result<()> {
        unreachable!("there is none")
    }

    fn write(&self, _: usize, _: u64, _: &[u8]) -> Result<()> {
        unreachable!("there is none")
    }

    fn zero_page(&self, _: usize, _: u64) -> Result<()> {
        unreachable!("there is none")
    }
}

pub(crate) fn saved(sections: &mut Sections<'_>) -> Result<Vec<u8>> {
    let mut tape = Tape::of(&[]);
    snapshot::save(&mut tape, "toy", sections, &NoRam).map(|()| tape.bytes)
}

pub(crate) fn load(stream: &[u8], strictness: Strictness, sections: &mut Sections<'_>) -> Result<()> {
    snapshot::load(&mut Tape::of(stream), "toy", strictness, Limits::default(), sections, &NoRam)
}

pub(crate) const HEAD: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x03toy";
/// START, PART and END of a machine without memory.
pub(crate) const RAM: &[u8] =
    b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01\
    \x02\0\0\0\x01\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01\
    \x03\0\0\0\x01\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01";

/// A FULL section of version 1 with one byte.
pub(crate) fn full(id: u8, name: &str, instance: u32, value: u8) -> Vec<u8> {
    let mut bytes = vec![4, 0, 0, 0, id, name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&instance.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 1, value, 0x7e, 0, 0, 0, id]);
    bytes
}

pub(crate) fn stream(early: &[Vec<u8>], last: &[Vec<u8>]) -> Vec<u8> {
    [HEAD, &early.concat(), RAM, &last.concat(), b"\0"].concat()
}
