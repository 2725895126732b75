//! Target: a kernel's image, as `minivmm run --kernel` loads it, with all that goes into guest memory beside it. What is loaded
//! of a bzImage is what is in the file behind its setup code.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use minivmm::boot::acpi::Machine;
use minivmm::boot::cpu::Entry;
use minivmm::boot::{BootFile, Payload, load};
use minivmm::memory::Ram;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "kernel", memory: 1 << 20, body, seeds };

/// Bytes of guest memory.
const RAM: u64 = 4 << 20;

/// One file and one memory for all inputs, and for one at a time: making them takes longer than a load.
static GROUND: LazyLock<Mutex<(File, BootFile, Ram)>> = LazyLock::new(|| {
    let file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).expect("a file in memory"));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let kernel = BootFile::open("--kernel", Path::new(&path)).expect("it is a file");
    Mutex::new((file, kernel, Ram::new(RAM).expect("guest memory")))
});

fn body(input: &[u8]) {
    let ground = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
    let (file, kernel, ram) = &*ground;
    file.set_len(0).and_then(|()| file.write_all_at(input, 0)).expect("room");
    let payload = Payload { kernel, initrd: None, append: "console=ttyS0" };
    let entry = load(ram, payload, &Machine { cpus: 2, virtio_windows: vec![7] });
    if let Ok(Entry::Linux64(entry)) = entry {
        // boot.rst: the 64-bit entry point is 0x200 bytes behind the load address.
        let image = setup_end(input).and_then(|end| input.get(end..)).expect("it was loaded");
        let mut loaded = vec![0; image.len()];
        ram.read(entry - 0x200, &mut loaded).expect("it was loaded there");
        assert!(loaded == image, "something else was loaded");
    }
}

/// Where the setup code ends, by the number of its sectors; 0 stands for 4.
fn setup_end(image: &[u8]) -> Option<usize> {
    let sectors = usize::from(*image.get(0x1f1)?);
    Some((if sectors == 0 { 4 } else { sectors } + 1) * 512)
}

fn seeds() -> Vec<Vec<u8>> {
    vec![bzimage(), pvh_elf()]
}

/// The setup header of boot protocol 2.12 and a page behind it.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0x90; 1024 + 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x202, b"HdrS");
    put(0x206, &0x20c_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &255_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x10_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x1_0000_u32.to_le_bytes()); // init_size
    image
}

/// One segment at 1 MiB, and the note with the PVH entry.
fn pvh_elf() -> Vec<u8> {
    const LOAD: u64 = 0x10_0000;
    let mut elf = vec![0; 0x300];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x10, &[2, 0, 62, 0, 1]); // ET_EXEC, EM_X86_64, version
    put(0x18, &LOAD.to_le_bytes()); // e_entry
    put(0x20, &0x40_u64.to_le_bytes()); // e_phoff
    put(0x34, &[64, 0, 56, 0, 2, 0]); // e_ehsize, e_phentsize, e_phnum
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, len: u64| {
        put(at, &kind.to_le_bytes());
        for (n, value) in [offset, address, address, len, len, 4].into_iter().enumerate() {
            put(at + 8 + n * 8, &value.to_le_bytes());
        }
    };
    header(0x40, 1, 0x200, LOAD, 0x100); // PT_LOAD
    header(0x78, 4, 0x100, 0, 20); // PT_NOTE
    put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]); // name and value of 4 bytes, XEN_ELFNOTE_PHYS32_ENTRY
    put(0x10c, b"Xen\0");
    put(0x110, &(LOAD as u32).to_le_bytes());
    elf
}
