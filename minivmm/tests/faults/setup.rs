//! Guest of the fault matrix: the tiny one, on this host's `/dev/kvm`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vmstate::ownership::{Access, Resource};
use vmstate_lab::faults::Result;
use vmstate_lab::faults::setup::{Memory, Setup, TINY, TestGuest};
use vmstate_lab::tiny;
use vmstate_lab::vmm::{Config, Program};

/// Pages that the guest rewrites in each pass.
const PAGES: u64 = 64;
const IMAGE_BYTES: usize = 64 << 10;

/// Whether KVM is there; prints that the test is skipped if not.
pub(crate) fn kvm_is_here() -> bool {
    minivmm::kvm::open().map_err(vmstate_lab::skip::skip).is_ok()
}

/// Returns whether this host lets a process wait for pages of its memory; if not, reports the skip.
pub(crate) fn pages_may_come_late() -> bool {
    let ram = minivmm::memory::Ram::new(1 << 20).unwrap();
    ram.check_late().map_err(vmstate_lab::skip::skip).is_ok()
}

/// Makes kernel and image in `directory`.
pub(crate) fn setup(directory: &Path, memory: Memory) -> Setup {
    let at = |name: &str| directory.join(name);
    fs::write(at("kernel"), tiny::bzimage()).unwrap();
    fs::write(at("image"), [0; IMAGE_BYTES]).unwrap();
    let program = Program::Minivmm(env!("CARGO_BIN_EXE_minivmm").into());
    let config = Config {
        kernel: at("kernel"),
        initrd: None,
        append: tiny::command_line_with_disk(PAGES, 0x40),
        memory_mib: 16,
        cpus: 1,
        disk: Some(at("image")),
        card: None,
        uso: true,
        control: PathBuf::new(),
        incoming: None,
        more: if memory == Memory::InPlace { ["--share-memory", "on"].map(str::to_owned).into() } else { Vec::new() },
    };
    Setup {
        test_guest: TestGuest { pass_on_disk: Some(pass_on_disk), ..TINY },
        launcher: None,
        program: program.clone(),
        peer: program,
        memory,
        config,
    }
}

/// Generation in the image's record: how often a guest was started on the image, or arrived with it.
pub(crate) fn generation(image: &Path) -> Result<u64> {
    let opened = File::open(image).map_err(|error| error.to_string())?;
    let record = Resource::image(opened, image, Access::Exclusive).record();
    let record = record.map_err(|error| error.to_string())?;
    record.map(|record| record.generation).ok_or_else(|| "the image has no record".into())
}

fn pass_on_disk(image: &Path) -> Result<u64> {
    let mut bytes = [0; 8];
    File::open(image).and_then(|file| file.read_exact_at(&mut bytes, 0)).map_err(|error| error.to_string())?;
    let found = u64::from_le_bytes(bytes);
    let pass = (0..1 << 20).find(|pass| tiny::expected_on_disk(*pass) == found);
    pass.ok_or_else(|| "the first sector holds no pass's number".into())
}
