//! Guest of the fault matrix: the tiny one, on this host's `/dev/kvm`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use minivmm::devices::virtio::blk::{Image, Mark};
use vmstate::ownership::{Access, Resource};
use vmstate_lab::faults::Result;
use vmstate_lab::faults::cell::Fault;
use vmstate_lab::faults::setup::{Memory, Setup, TINY, TestGuest};
use vmstate_lab::tiny;
use vmstate_lab::tmpfs::Tmpfs;
use vmstate_lab::vmm::{Attachment, Config, Program};

/// Pages that the guest rewrites in each pass.
const PAGES: u64 = 64;
/// Time between two passes, in 65536 ticks of the time stamp counter: some ten milliseconds.
const SPAN: u64 = 0x200;
const IMAGE_BYTES: usize = 64 << 10;
/// Bytes of an image that is copied, and offsets and length of the data on it; there is a hole between.
const COPIED_BYTES: u64 = 12 << 20;
const COPIED_DATA: [u64; 2] = [64 << 10, 8 << 20];
const PIECE: u64 = 3 << 20;
/// Offset of the data on a disk that is saved, behind what the guest uses.
const SAVED_DATA: u64 = 64 << 10;

/// Whether KVM is there; prints that the test is skipped if not.
pub(crate) fn kvm_is_here() -> bool {
    minivmm::kvm::open().map_err(vmstate_lab::skip::skip).is_ok()
}

/// Returns whether this host lets a process wait for pages of its memory; if not, reports the skip.
pub(crate) fn postcopy_is_possible() -> bool {
    let ram = minivmm::memory::Ram::new(1 << 20).unwrap();
    ram.check_postcopy().map_err(vmstate_lab::skip::skip).is_ok()
}

/// Bytes of a small file system, which has room for a copy of the disk.
pub(crate) const SMALL: u64 = 16 << 20;

/// Returns whether this process may mount a small file system on which an image can be marked; if not, reports the skip.
pub(crate) fn small_file_systems_take_copies() -> bool {
    let directory = tempfile::tempdir().unwrap();
    let small = match Tmpfs::mount(&directory.path().join("small"), SMALL) {
        Ok(small) => small,
        Err(error) => {
            vmstate_lab::skip::skip(format_args!("a small file system cannot be mounted: {error}"));
            return false;
        }
    };
    let made = Image::create(&small.path().join("copy"), 4096);
    made.map_err(|error| vmstate_lab::skip::skip(minivmm::error::chain(&error))).is_ok()
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
        append: tiny::halting_command_line(PAGES, SPAN, true),
        memory_mib: 16,
        cpus: 1,
        disk: Some(at("image")),
        card: None,
        uso: true,
        control: PathBuf::new(),
        incoming: None,
        more: if memory.stays() { ["--share-memory", "on"].map(str::to_owned).into() } else { Vec::new() },
    };
    Setup {
        test_guest: TestGuest { pass_on_disk: Some(pass_on_disk), ..TINY },
        launcher: None,
        program: program.clone(),
        peer: program,
        memory,
        copied_to: None,
        config,
    }
}

/// Makes kernel and, if the guest has a disk, its image in `directory`, for a snapshot.
pub(crate) fn saving(directory: &Path, has_disk: bool) -> Setup {
    let mut setup = setup(directory, Memory::Main);
    if has_disk {
        let image = File::options().write(true).open(directory.join("image")).unwrap();
        image.write_all_at(&copied_data(SAVED_DATA), SAVED_DATA).unwrap();
    } else {
        setup.config.disk = None;
        setup.config.append = tiny::halting_command_line(PAGES, SPAN, false);
        setup.test_guest.pass_on_disk = None;
    }
    setup
}

/// The network of a guest whose memory is not sent, with a peer that counts the connections.
pub(crate) struct Network(UnixListener);

impl Network {
    /// Gives the machines of `setup` a card on the network, if the guest's memory is not sent.
    pub(crate) fn of(setup: &mut Setup, directory: &Path) -> Option<Self> {
        let path = setup.memory.stays().then(|| directory.join("network"))?;
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        setup.config.card = Some(Attachment::Stream(path));
        Some(Self(listener))
    }

    /// Checks that the first connection was also the last one: it was handed over, and stayed where it was after each failure.
    pub(crate) fn check(&self) -> Result<()> {
        match [self.0.accept(), self.0.accept()].map(|accepted| accepted.map_err(|error| error.kind())) {
            [Ok(_), Err(ErrorKind::WouldBlock)] => Ok(()),
            others => Err(format!("connections to the card's network: {others:?}")),
        }
    }
}

/// Makes kernel and image in `directory`; the content of the disk is copied to a new image in `there`.
pub(crate) fn copying(directory: &Path, there: &Path) -> Setup {
    let mut setup = setup(directory, Memory::Main);
    let image = directory.join("image");
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(COPIED_BYTES).unwrap();
    for at in COPIED_DATA {
        file.write_all_at(&copied_data(at), at).unwrap();
    }
    setup.config.disk = Some(image);
    setup.copied_to = Some(there.join("copy"));
    setup
}

/// Content of a piece of data that the guest does not touch.
fn copied_data(at: u64) -> Vec<u8> {
    (at..at + PIECE).map(|byte| (byte.wrapping_mul(0x9e37_79b9) >> 11) as u8 | 1).collect()
}

/// Checks after a fault that a guest can be started on one of both images, and not on the other, and that the former has all
/// data.
pub(crate) fn check_images(setup: &Setup, fault: Fault) -> Result<()> {
    let (Some(image), Some(copy)) = (&setup.config.disk, &setup.copied_to) else { return Ok(()) };
    let marks = |image: &Path| {
        let file = File::open(image).map_err(|error| format!("{}: {error}", image.display()))?;
        let has = |mark: &Mark| rustix::fs::fgetxattr(&file, mark.attribute(), &mut [0; 8][..]).is_ok();
        Ok::<_, String>(Mark::ALL.into_iter().filter(has).collect::<Vec<_>>())
    };
    let whole = match (marks(image)?.as_slice(), marks(copy)?.as_slice()) {
        ([], []) if fault == Fault::CopyExists => image,
        ([], [Mark::Incomplete]) => image,
        ([Mark::Stale], []) => copy,
        other => return Err(format!("marks of the source's image and of its copy: {other:?}")),
    };
    if fault == Fault::ImageTruncated {
        return Ok(());
    }
    let found = fs::read(whole).map_err(|error| error.to_string())?;
    let damaged = |at: &u64| found.get(*at as usize..(at + PIECE) as usize) != Some(&copied_data(*at)[..]);
    match COPIED_DATA.into_iter().find(damaged) {
        Some(at) => Err(format!("{} is damaged behind {at:#x}", whole.display())),
        None => Ok(()),
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
