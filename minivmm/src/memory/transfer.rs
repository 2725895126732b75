//! Sends guest RAM to descriptors and receives it, by one gathering or scattering system call, without a copy in this process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_void, iovec};
use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::{DeviceWrites, Ram, offset_of};
use crate::error::{Error, Result};

/// Most parts of one call (`UIO_MAXIOV`, readv(2)).
const PARTS: usize = 1024;

/// Part of the data to send.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Bytes of this process.
    Bytes(&'a [u8]),
    /// Bytes of the RAM block.
    Ram {
        /// Offset in the block.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// A stretch of guest memory that is contiguous in host memory.
pub(super) type Slice<'a> = VolatileSlice<'a, BS<'a, DeviceWrites>>;

impl Ram {
    /// Writes the first bytes of `parts` to `to`, with RAM's present content, and returns how many.
    ///
    /// # Errors
    /// The errors of writev(2); [`Error::OutsideRam`] as the inner error.
    pub fn send<'a>(&self, to: BorrowedFd<'_>, parts: impl IntoIterator<Item = Part<'a>>) -> io::Result<usize> {
        let mut vectors = Vec::with_capacity(PARTS);
        for part in parts.into_iter().take(PARTS) {
            match part {
                Part::Bytes(bytes) => vectors.push(vector(bytes.as_ptr().cast_mut(), bytes.len())),
                Part::Ram { offset, len } => match self.host(offset, len) {
                    Some(address) => vectors.push(vector(address, len as usize)),
                    None => {
                        let slices = self.slices(offset, len).map_err(io::Error::other)?;
                        vectors.extend(slices.map(|slice| vector(slice.ptr_guard_mut().as_ptr(), slice.len())));
                    }
                },
            }
        }
        let count = vectors.len().min(PARTS) as c_int;
        // SAFETY: `count` vectors are there. Each is of bytes that the caller lends for this call or inside of a mapping that `self`
        // keeps alive, and the kernel reads them only. The guest may change its memory meanwhile: no reference of Rust's is to it.
        result(unsafe { libc::writev(to.as_raw_fd(), vectors.as_ptr(), count) })
    }

    /// Reads from `from` into the first bytes of `runs`, offsets in the block and lengths, and returns how many; 0 at the end.
    /// The received pages are marked as written by a device, as [`write`](Self::write) does: [`zero_run`](Self::zero_run)
    /// relies on it.
    ///
    /// # Errors
    /// The errors of readv(2); [`Error::OutsideRam`] as the inner error.
    pub fn receive(&self, from: BorrowedFd<'_>, runs: impl IntoIterator<Item = (u64, u64)>) -> io::Result<usize> {
        let mut slices: Vec<Slice<'_>> = Vec::new();
        for (offset, len) in runs.into_iter().take(PARTS) {
            slices.extend(self.slices(offset, len).map_err(io::Error::other)?);
        }
        slices.truncate(PARTS);
        let vectors: Vec<_> = slices.iter().map(|slice| vector(slice.ptr_guard_mut().as_ptr(), slice.len())).collect();
        // SAFETY: so many vectors are there, each inside of a mapping that `self` keeps alive and may write. No reference of Rust's
        // is to guest memory.
        let received = result(unsafe { libc::readv(from.as_raw_fd(), vectors.as_ptr(), vectors.len() as c_int) })?;
        mark_received(&slices, received);
        Ok(received)
    }

    /// Writes the first of `len` bytes at `offset` of the block to `file` at `at`, with RAM's present content, and returns how many.
    ///
    /// # Errors
    /// The errors of pwritev(2); [`Error::OutsideRam`] as the inner error.
    pub fn send_at(&self, file: &File, at: u64, offset: u64, len: u64) -> io::Result<usize> {
        let slices: Vec<_> = self.slices(offset, len).map_err(io::Error::other)?.collect();
        let vectors: Vec<_> = slices.iter().map(|slice| vector(slice.ptr_guard_mut().as_ptr(), slice.len())).collect();
        let at = libc::off64_t::try_from(at).map_err(io::Error::other)?;
        // SAFETY: so many vectors are there, each inside of a mapping that `self` keeps alive, and the kernel reads them only. No
        // reference of Rust's is to guest memory.
        result(unsafe { libc::pwritev64(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as c_int, at) })
    }

    /// Reads from `file` at `at` into the first of `len` bytes at `offset` of the block, and returns how many; 0 at the end. The
    /// pages are marked as [`receive`](Self::receive) does.
    ///
    /// # Errors
    /// The errors of preadv(2); [`Error::OutsideRam`] as the inner error.
    pub fn receive_at(&self, file: &File, at: u64, offset: u64, len: u64) -> io::Result<usize> {
        let slices: Vec<_> = self.slices(offset, len).map_err(io::Error::other)?.collect();
        let vectors: Vec<_> = slices.iter().map(|slice| vector(slice.ptr_guard_mut().as_ptr(), slice.len())).collect();
        let at = libc::off64_t::try_from(at).map_err(io::Error::other)?;
        // SAFETY: so many vectors are there, each inside of a mapping that `self` keeps alive and may write. No reference of Rust's
        // is to guest memory.
        let received =
            result(unsafe { libc::preadv64(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as c_int, at) })?;
        mark_received(&slices, received);
        Ok(received)
    }

    /// Address in this process of `len` bytes at `offset`, if they are contiguous.
    pub(super) fn host(&self, offset: u64, len: u64) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        self.guest.iter().find_map(|region| {
            let begin = offset_of(region.start_addr().0);
            let is_here = begin <= offset && end <= begin + region.len();
            is_here.then(|| region.get_mmap().as_ptr().wrapping_add((offset - begin) as usize))
        })
    }

    /// `len` bytes at `offset`, in at most two pieces of host memory.
    pub(super) fn slices(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = Slice<'_>>> {
        let outside = Error::OutsideRam { at: offset, len };
        let Some((low_len, low, high)) = self.place(offset, len as usize) else { return Err(outside) };
        let slice = |address, len| if len == 0 { Ok(None) } else { self.guest.get_slice(address, len).map(Some) };
        match (slice(low, low_len), slice(high, len as usize - low_len)) {
            (Ok(low), Ok(high)) => Ok(low.into_iter().chain(high)),
            _ => Err(outside),
        }
    }
}

/// Marks the first `received` bytes of `slices` as written by a device.
fn mark_received(slices: &[Slice<'_>], mut received: usize) {
    for slice in slices {
        let here = slice.len().min(received);
        slice.bitmap().mark_dirty(0, here);
        received -= here;
    }
}

fn vector(base: *mut u8, len: usize) -> iovec {
    iovec { iov_base: base.cast::<c_void>(), iov_len: len }
}

fn result(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::memory::{LOW_RAM_MAX, PAGE_SIZE};

    fn pattern(len: usize, salt: usize) -> Vec<u8> {
        (0..len).map(|at| ((at * 7) ^ (at >> 8) ^ salt) as u8).collect()
    }

    /// Also across the hole between the two stretches of RAM.
    #[test]
    fn bytes_and_ram_go_out_in_their_order_and_come_in_where_they_should() {
        let end = LOW_RAM_MAX + (1 << 20);
        let (ram, target) = (Ram::new(end).unwrap(), Ram::new(end).unwrap());
        let runs = [(3 * PAGE_SIZE, 2 * PAGE_SIZE), (LOW_RAM_MAX - PAGE_SIZE, 3 * PAGE_SIZE), (7, 1000)];
        let mut expected = Vec::new();
        let mut parts = Vec::new();
        for (salt, &(offset, len)) in runs.iter().enumerate() {
            let bytes = pattern(len as usize, salt);
            ram.write(offset, &bytes).unwrap();
            parts.extend([Part::Bytes(b"head"), Part::Ram { offset, len }]);
            expected.extend([b"head".as_slice(), &bytes].concat());
        }
        let (here, mut there) = UnixStream::pair().unwrap();
        assert_eq!(ram.send(here.as_fd(), parts).unwrap(), expected.len());
        let mut got = vec![0; expected.len()];
        there.read_exact(&mut got).unwrap();
        assert!(got == expected);

        let bytes = pattern(runs.iter().map(|&(_, len)| len as usize).sum(), 9);
        there.write_all(&bytes).unwrap();
        assert_eq!(target.receive(here.as_fd(), runs).unwrap(), bytes.len());
        let mut taken = bytes.as_slice();
        for (offset, len) in runs {
            let mut here = vec![0; len as usize];
            target.read(offset, &mut here).unwrap();
            let (now, rest) = taken.split_at(here.len());
            assert!(here == now, "at {offset:#x}");
            taken = rest;
        }
    }

    /// Received pages are marked as written by a device, and no others.
    #[test]
    fn exactly_what_came_is_marked() {
        let ram = Ram::new(1 << 20).unwrap();
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(&[7; 5000]).unwrap();
        assert_eq!(ram.receive(here.as_fd(), [(0x3000, 0x1000), (0x8000, 0x2000)]).unwrap(), 5000);
        let mut words = [0; 4];
        ram.take_device_writes(&mut words);
        assert_eq!(words, [1 << 3 | 1 << 8, 0, 0, 0]);
        drop(there);
        assert_eq!(ram.receive(here.as_fd(), [(0, 0x1000)]).unwrap(), 0);
        ram.take_device_writes(&mut words);
        assert_eq!(words, [1 << 3 | 1 << 8, 0, 0, 0], "nothing more");
    }

    #[test]
    fn more_parts_than_one_call_takes_are_sent_in_part() {
        let ram = Ram::new(16 << 20).unwrap();
        let (here, _there) = UnixStream::pair().unwrap();
        let parts = (0..3000).map(|at| Part::Ram { offset: at, len: 1 });
        assert_eq!(ram.send(here.as_fd(), parts).unwrap(), PARTS);
    }

    #[test]
    fn ranges_outside_are_neither_sent_nor_received() {
        let ram = Ram::new(1 << 20).unwrap();
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(&[1; 64]).unwrap();
        for (offset, len) in [((1 << 20) - 1, 2), (1 << 20, 1), (u64::MAX, 2)] {
            let refused = [
                ram.send(here.as_fd(), [Part::Ram { offset, len }]).unwrap_err(),
                ram.receive(here.as_fd(), [(0, 8), (offset, len)]).unwrap_err(),
            ];
            for refused in refused {
                let within = refused.downcast::<Error>().unwrap();
                assert!(matches!(within, Error::OutsideRam { .. }), "{within}");
            }
        }
        let mut first = [9];
        ram.read(0, &mut first).unwrap();
        assert_eq!(first, [0]);
    }
}
