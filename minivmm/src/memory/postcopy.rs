//! Guest RAM in which a guest runs before all of its pages have arrived: a thread that touches a missing page waits
//! (userfaultfd(2)). The process's own threads, KVM and vhost-net all wait like this.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{c_ulong, c_void};
use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_THREAD_ID, UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_copy,
    uffdio_range, uffdio_register, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_ZEROPAGE};
use rustix::io::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use vm_memory::bitmap::Bitmap;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::{PAGE_SIZE, Ram};
use crate::error::{Error, Result};

/// Bytes of a message (`uffd_msg`), and the offsets of its kind and of a fault's address and thread (linux/userfaultfd.h).
const MESSAGE: usize = 32;
const EVENT: usize = 0;
const ADDRESS: std::ops::Range<usize> = 16..24;
const THREAD: std::ops::Range<usize> = 24..28;

/// Most messages read at once.
const MESSAGES: usize = 64;

/// A fault at a missing page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Offset of the page from the start of the block.
    pub offset: u64,
    /// Waiting thread, with its id of gettid(2); a kernel thread may wait on another's behalf. 0 if the kernel does not report
    /// it.
    pub thread: u32,
}

/// Userfaultfd, which reports faults.
#[derive(Debug)]
pub(super) struct Faults {
    descriptor: File,
    /// Whether the kernel reports which thread waits.
    names_threads: bool,
}

/// Opens a userfaultfd. One that also serves KVM's accesses is granted only to privileged processes (CAP_SYS_PTRACE), or if
/// `vm.unprivileged_userfaultfd` allows it: so it is opened before the process is confined.
pub(super) fn open() -> io::Result<Faults> {
    // SAFETY: a descriptor that nothing is registered with changes nothing.
    let descriptor = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?;
    let agree = |features: u32| {
        let mut api = uffdio_api { api: UFFD_API.into(), features: features.into(), ioctls: 0 };
        // SAFETY: the kernel reads and writes an `uffdio_api`, which is there.
        done(unsafe { ioctl_with_mut_ref(&descriptor, c_ulong::from(UFFDIO_API), &mut api) })
    };
    // A kernel without the feature refuses it, and accepts another call without it.
    let names_threads = agree(UFFD_FEATURE_THREAD_ID).is_ok();
    if !names_threads {
        agree(0)?;
    }
    Ok(Faults { descriptor: OwnedFd::into(descriptor), names_threads })
}

impl Ram {
    /// Checks that a guest can run here before all of its pages have arrived.
    ///
    /// # Errors
    /// [`Error::Memory`] with the reason and a remedy.
    pub fn check_postcopy(&self) -> Result<()> {
        self.faults().map(|_| ())
    }

    /// Checks that the kernel reports which thread waits for a page.
    ///
    /// # Errors
    /// [`Error::Memory`] with the reason and a remedy.
    pub fn check_threads(&self) -> Result<()> {
        self.check_postcopy()?;
        match self.faults.as_ref() {
            Ok(faults) if faults.names_threads => Ok(()),
            _ => Err(Error::Memory {
                what: "this kernel does not report which thread waits for a page (UFFD_FEATURE_THREAD_ID); Linux does from 4.14 on".into(),
            }),
        }
    }

    /// Drops `len` bytes at `offset`: they read as zero until [`await_pages`](Self::await_pages), after which accesses wait for
    /// them.
    ///
    /// # Errors
    /// [`Error::OutsideRam`], [`Error::Memory`].
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        for slice in self.slices(offset, len)? {
            let start = slice.ptr_guard_mut().as_ptr().cast::<c_void>();
            // SAFETY: the slice is inside of a live mapping of private memory that `self` keeps; that its bytes become zero is what is
            // asked for, and no reference of Rust's is to guest memory.
            if unsafe { libc::madvise(start, slice.len(), libc::MADV_DONTNEED) } != 0 {
                return Err(refused("pages cannot be dropped", io::Error::last_os_error()));
            }
        }
        Ok(())
    }

    /// Makes each access to a missing page wait from now on, until the page is [put](Self::put) into place.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn await_pages(&self) -> Result<()> {
        let faults = self.faults()?;
        for stretch in self.stretches() {
            let range = uffdio_range { start: stretch.host_address, len: stretch.len };
            let mut register = uffdio_register { range, mode: UFFDIO_REGISTER_MODE_MISSING.into(), ioctls: 0 };
            // SAFETY: the kernel reads and writes an `uffdio_register`, which is there. The range is a mapping that `self` keeps: a
            // thread that touches a missing page waits, and then reads the bytes of guest memory.
            let registered = unsafe { ioctl_with_mut_ref(faults, c_ulong::from(UFFDIO_REGISTER), &mut register) };
            done(registered).map_err(|error| refused("missing pages cannot be waited for", error))?;
        }
        Ok(())
    }

    /// Ends all waits: a missing page reads as zero from now on.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn end_waits(&self) -> Result<()> {
        let faults = self.faults()?;
        for stretch in self.stretches() {
            let range = uffdio_range { start: stretch.host_address, len: stretch.len };
            // SAFETY: the kernel reads an `uffdio_range`, which is there, of a mapping that `self` keeps.
            let ended = unsafe { ioctl_with_ref(faults, c_ulong::from(UFFDIO_UNREGISTER), &range) };
            done(ended).map_err(|error| refused("waiting for missing pages cannot be ended", error))?;
        }
        Ok(())
    }

    /// Appends the faults since the last call, without waiting. The kernel may report a fault more than once.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn waited_for(&self, waits: &mut Vec<Fault>) -> Result<()> {
        let mut faults = self.faults()?;
        let mut messages = [0; MESSAGE * MESSAGES];
        loop {
            let count = match faults.read(&mut messages) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(refused("faults at missing pages cannot be read", error)),
            };
            let (whole, _) = messages[..count].as_chunks::<MESSAGE>();
            let faults = whole.iter().filter(|message| u32::from(message[EVENT]) == UFFD_EVENT_PAGEFAULT);
            waits.extend(faults.filter_map(|message| {
                let address = message[ADDRESS].try_into().ok().map(u64::from_ne_bytes)?;
                let thread = message[THREAD].try_into().ok().map(u32::from_ne_bytes)?;
                Some(Fault { offset: self.offset_at(address)?, thread })
            }));
            if count < messages.len() {
                return Ok(());
            }
        }
    }

    /// Descriptor that becomes readable when a thread begins to wait for a page; none where the system cannot do that.
    pub fn faults_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.faults().ok().map(AsFd::as_fd)
    }

    /// Puts a page into place, `None` for a zero page, and wakes its waiters. A page that is already there stays unchanged.
    ///
    /// # Errors
    /// [`Error::OutsideRam`], [`Error::Memory`].
    pub fn put(&self, offset: u64, page: Option<&[u8; PAGE_SIZE as usize]>) -> Result<()> {
        let Some(page) = page else { return self.put_zeros(offset, 1) };
        let faults = self.faults()?;
        let outside = Error::OutsideRam { at: offset, len: PAGE_SIZE };
        let Some(slice) = self.slices(offset, PAGE_SIZE)?.next() else { return Err(outside) };
        let start = slice.ptr_guard_mut().as_ptr() as u64;
        slice.bitmap().mark_dirty(0, PAGE_SIZE as usize);
        loop {
            let mut copy = uffdio_copy { dst: start, src: page.as_ptr() as u64, len: PAGE_SIZE, mode: 0, copy: 0 };
            // SAFETY: the kernel reads and writes an `uffdio_copy`, which is there, and reads a page's bytes of `page`; it fills a
            // missing page of a mapping that `self` keeps, and leaves one alone that is there.
            let put = done(unsafe { ioctl_with_mut_ref(faults, c_ulong::from(UFFDIO_COPY), &mut copy) });
            if is_put(faults, start, put)? {
                return Ok(());
            }
        }
    }

    /// Puts this many zero pages into place, as [`put`](Self::put) does one.
    ///
    /// # Errors
    /// As for [`put`](Self::put).
    pub fn put_zeros(&self, offset: u64, pages: u64) -> Result<()> {
        let faults = self.faults()?;
        for slice in self.slices(offset, pages.saturating_mul(PAGE_SIZE))? {
            slice.bitmap().mark_dirty(0, slice.len());
            let mut start = slice.ptr_guard_mut().as_ptr() as u64;
            let end = start + slice.len() as u64;
            while start < end {
                let range = uffdio_range { start, len: end - start };
                let mut zero = uffdio_zeropage { range, mode: 0, zeropage: 0 };
                // SAFETY: the kernel reads and writes an `uffdio_zeropage`, which is there; it fills missing pages of a mapping that
                // `self` keeps, up to the first page that is there.
                let put = done(unsafe { ioctl_with_mut_ref(faults, c_ulong::from(UFFDIO_ZEROPAGE), &mut zero) });
                let is_first_put = is_put(faults, start, put)?;
                // The kernel reports the bytes that it put in place, or a negative error if there are none.
                let bytes = u64::try_from(zero.zeropage).unwrap_or(0);
                start += if is_first_put { bytes.max(PAGE_SIZE) } else { bytes };
            }
        }
        Ok(())
    }

    fn faults(&self) -> Result<&File> {
        if self.descriptor().is_some() {
            let what = "another process may have mapped guest RAM, so its pages cannot be waited for; start without --share-memory";
            return Err(Error::Memory { what: what.into() });
        }
        let faults = self.faults.as_ref().as_ref();
        faults.map(|faults| &faults.descriptor).map_err(|error| Error::Memory {
            what: format!(
                "pages that are missing cannot be waited for (userfaultfd: {error}); start minivmm as root or with CAP_SYS_PTRACE, or set \
                 sysctl vm.unprivileged_userfaultfd=1"
            ),
        })
    }

    /// Offset in the block of this address of the process.
    fn offset_at(&self, address: u64) -> Option<u64> {
        self.stretches().find_map(|stretch| {
            let at = address.checked_sub(stretch.host_address).filter(|&at| at < stretch.len)?;
            Some(stretch.offset + at / PAGE_SIZE * PAGE_SIZE)
        })
    }
}

/// True if the page at this address is in place after `put`, or was before; false if the call must be repeated.
fn is_put(faults: &File, start: u64, put: io::Result<()>) -> Result<bool> {
    match put {
        Ok(()) => Ok(true),
        // The process's mappings are just being changed, or a part is in place.
        Err(error) if is(&error, Errno::AGAIN) || error.kind() == ErrorKind::Interrupted => Ok(false),
        // The page is there already, but its waiters may not have been woken.
        Err(error) if is(&error, Errno::EXIST) => {
            let range = uffdio_range { start, len: PAGE_SIZE };
            // SAFETY: the kernel reads an `uffdio_range`, which is there.
            let woken = unsafe { ioctl_with_ref(faults, c_ulong::from(UFFDIO_WAKE), &range) };
            done(woken).map_err(|error| refused("the waiters for a page cannot be woken", error))?;
            Ok(true)
        }
        Err(error) => Err(refused("a page cannot be put into place", error)),
    }
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn refused(what: &str, error: io::Error) -> Error {
    Error::Memory { what: format!("{what}: {error}") }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::memory::LOW_RAM_MAX;

    const PAGE: usize = PAGE_SIZE as usize;
    /// An offset in another huge page than the written pages.
    const FAR: u64 = 64 << 20;

    /// Makes RAM on both sides of the hole; `None` if the host does not allow waits for missing pages.
    fn postcopy_memory() -> Option<Ram> {
        let ram = Ram::new(LOW_RAM_MAX + (1 << 20)).unwrap();
        match ram.check_postcopy() {
            Ok(()) => Some(ram),
            Err(error) => {
                vmstate_lab::skip::skip(error);
                None
            }
        }
    }

    fn waited_for(ram: &Ram) -> Vec<Fault> {
        let (begun, mut waits) = (Instant::now(), Vec::new());
        while waits.is_empty() && begun.elapsed() < Duration::from_secs(10) {
            ram.waited_for(&mut waits).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        waits.dedup();
        waits
    }

    /// Covers RAM above the hole, and a fault of the kernel on a thread's behalf.
    #[test]
    fn a_thread_that_touches_a_missing_page_waits_for_that_page() {
        let Some(ram) = postcopy_memory() else { return };
        let high = LOW_RAM_MAX + 5 * PAGE_SIZE;
        ram.write(3 * PAGE_SIZE, &[7; PAGE]).unwrap();
        ram.write(high, &[8; PAGE]).unwrap();
        ram.discard(high, PAGE_SIZE).unwrap();
        ram.await_pages().unwrap();
        let mut there = [0; 1];
        ram.read(3 * PAGE_SIZE, &mut there).unwrap();
        assert_eq!(there, [7], "a page that is there");
        let (here, mut there) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut there, &[5; 4]).unwrap();
        thread::scope(|scope| {
            let (sender, thread_id) = std::sync::mpsc::channel();
            let ram = &ram;
            let reader = scope.spawn(move || {
                sender.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
                let mut byte = [0; 1];
                ram.read(high + 9, &mut byte).unwrap();
                byte[0]
            });
            let (waits, over) = (waited_for(ram), reader.is_finished());
            ram.put(high, Some(&[9; PAGE])).unwrap();
            assert_eq!(reader.join().unwrap(), 9);
            assert_eq!((&waits[..], over), (&[Fault { offset: high, thread: thread_id.recv().unwrap() }][..], false));
            // The kernel writes there, for a `readv` of a socket's bytes.
            let receiver = scope.spawn(|| ram.receive(here.as_fd(), [(FAR, 4)]).unwrap());
            assert_eq!(waited_for(ram).iter().map(|wait| wait.offset).collect::<Vec<_>>(), [FAR]);
            ram.put(FAR, None).unwrap();
            assert_eq!(receiver.join().unwrap(), 4);
        });
        let mut words = vec![0; (ram.len() / PAGE_SIZE).div_ceil(64) as usize];
        ram.take_device_writes(&mut words);
        assert!(words[(high / PAGE_SIZE / 64) as usize] >> (high / PAGE_SIZE % 64) & 1 == 1, "as a device's write");
    }

    #[test]
    fn a_present_page_stays_unchanged_and_after_the_end_no_access_waits() {
        let Some(ram) = postcopy_memory() else { return };
        ram.await_pages().unwrap();
        ram.put(0, None).unwrap();
        ram.write(0, b"guest").unwrap();
        ram.put(0, Some(&[1; PAGE])).unwrap();
        ram.put(0, None).unwrap();
        let mut bytes = [0; 6];
        ram.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"guest\0");
        assert!(matches!(ram.put(ram.len(), None), Err(Error::OutsideRam { .. })));
        // Zeros are put around pages that are there, and on both sides of the hole.
        [2, 3, 6].into_iter().for_each(|page| ram.put(page * PAGE_SIZE, Some(&[page as u8; PAGE])).unwrap());
        ram.put_zeros(PAGE_SIZE, 7).unwrap();
        ram.put_zeros(LOW_RAM_MAX - PAGE_SIZE, 2).unwrap();
        assert!(ram.put_zeros(ram.len() - PAGE_SIZE, 2).is_err());
        let first = |page: u64| {
            let mut byte = [9; 1];
            ram.read(page * PAGE_SIZE, &mut byte).unwrap();
            byte[0]
        };
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(first), [0, 2, 3, 0, 0, 6, 0]);
        assert_eq!([LOW_RAM_MAX / PAGE_SIZE - 1, LOW_RAM_MAX / PAGE_SIZE].map(first), [0, 0]);
        ram.end_waits().unwrap();
        ram.read(8 * PAGE_SIZE, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 6]);
    }

    #[test]
    fn memory_that_others_map_is_refused() {
        let why = Ram::shared(1 << 20).unwrap().check_postcopy().unwrap_err().to_string();
        assert!(why.contains("another process may have mapped guest RAM"), "{why}");
    }
}
