//! Target: a kernel's image, loaded as by `minivmm run --kernel`, with everything else that goes into guest memory. The
//! part of a bzImage that is loaded must equal the file after its setup code.

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
use vmstate_lab::image;

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "kernel", memory: 1 << 20, body, seeds };

/// Size of guest memory.
const RAM: u64 = 4 << 20;

/// The file and the guest memory, shared by all inputs, one at a time: making them takes longer than a load.
static GROUND: LazyLock<Mutex<(File, BootFile, Ram)>> = LazyLock::new(|| {
    let file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).expect("a file in memory"));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let kernel = BootFile::open("--kernel", Path::new(&path)).expect("a kernel file");
    Mutex::new((file, kernel, Ram::new(RAM).expect("guest memory")))
});

fn body(input: &[u8]) {
    let ground = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
    let (file, kernel, ram) = &*ground;
    file.set_len(0).and_then(|()| file.write_all_at(input, 0)).expect("room");
    let payload = Payload { kernel, initrd: None, append: "console=ttyS0" };
    let entry = load(ram, payload, &Machine { cpus: 2, virtio_windows: vec![7] });
    if let Ok(Entry::Linux64(entry)) = entry {
        // By boot.rst the 64-bit entry point is 0x200 bytes after the load address.
        let image = setup_end(input).and_then(|end| input.get(end..)).expect("the input was loaded");
        let mut loaded = vec![0; image.len()];
        ram.read(entry - 0x200, &mut loaded).expect("the kernel was loaded there");
        assert!(loaded == image, "the loaded kernel differs from the file");
    }
}

/// End of the setup code, by its number of sectors, for which 0 means 4.
fn setup_end(image: &[u8]) -> Option<usize> {
    let sectors = usize::from(*image.get(0x1f1)?);
    Some((if sectors == 0 { 4 } else { sectors } + 1) * 512)
}

fn seeds() -> Vec<Vec<u8>> {
    vec![image::bzimage(&[0x90; 4096]), image::pvh_elf(0x10_0000, &[0; 0x100])]
}
