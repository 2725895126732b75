//! Steps of the driver, called one by one without its thread.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};
use vmstate_lab::tiny;

use super::*;
use crate::bus::BusDevice;
use crate::config::{Address, Config, Cpu, Disk, Rate, RateLimits, Restore, Serial, Tls};
use crate::kvm;
use crate::vm::request::{ParameterChange, Terms};

/// Address of the test driver's queue, and after it of the data that is read: far from what the guest uses.
const QUEUE: u64 = 32 << 20;
const DATA: u64 = 48 << 20;
const PIECE: u32 = 8 << 20;
/// Rate of the disk in bytes a second: a piece of 256 KiB every 62 ms.
const RATE: u64 = 4 << 20;
/// Content of guest memory before a read.
const UNTOUCHED: u8 = 0xff;

/// Requests the same 8 MiB from the machine's disk sixty times, each to another address (virtio 1.2 §2.7, §4.2.3): work for two
/// minutes at the [rate](RATE) of the disk.
fn ask_for_much(vm: &Vm) {
    offer_much(vm);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !has_begun(vm) {
        assert!(Instant::now() < deadline, "the disk does nothing");
        std::thread::sleep(Duration::from_micros(100));
    }
    assert_eq!(vm.ram.guest().read_obj::<u16>(GuestAddress(QUEUE + 0x6002)).unwrap(), 0, "done already");
}

/// Whether the disk has read a piece.
fn has_begun(vm: &Vm) -> bool {
    vm.ram.guest().read_obj::<u8>(GuestAddress(DATA)).unwrap() != UNTOUCHED
}

/// Initializes the disk as a driver does, and queues the requests.
fn offer_much(vm: &Vm) {
    const BUFFERS: u16 = 60;
    let memory = vm.ram.guest();
    let disk = &vm.machine.devices.disks[0];
    let write = |register: u64, value: u32| disk.lock().unwrap().write(register, &value.to_le_bytes());
    // A reset waits for the piece that is being read, which must not count as read after it.
    write(0x070, 0);
    memory.write_slice(&vec![UNTOUCHED; PIECE as usize], GuestAddress(DATA)).unwrap();
    let (header, status) = (QUEUE + 0x8000, QUEUE + 0x8100);
    let mut chain = vec![(header, 16, 0)];
    chain.extend([(DATA, PIECE, 2)].repeat(BUFFERS.into()));
    chain.push((status, 1, 2));
    for (index, (address, len, flags)) in (0_u16..).zip(&chain) {
        let more = if usize::from(index) + 1 < chain.len() { 1 } else { 0 };
        let at = GuestAddress(QUEUE + 16 * u64::from(index));
        memory.write_obj(*address, at).unwrap();
        memory
            .write_obj(u64::from(*len) | (flags | more) << 32 | u64::from(index + 1) << 48, GuestAddress(at.0 + 8))
            .unwrap();
    }
    // One chain is available, which begins at descriptor 0.
    memory.write_obj(1_u16, GuestAddress(QUEUE + 0x4002)).unwrap();
    for (register, value) in [(0x070, 1), (0x070, 3), (0x024, 1), (0x020, 1), (0x070, 11), (0x030, 0), (0x038, 64)] {
        write(register, value);
    }
    for (register, place) in [(0x080, QUEUE), (0x090, QUEUE + 0x4000), (0x0a0, QUEUE + 0x6000)] {
        write(register, place as u32);
    }
    for (register, value) in [(0x044, 1), (0x070, 15), (0x050, 0)] {
        write(register, value);
    }
}

/// Makes a machine whose disk reads `rate` bytes a second.
fn machine(dir: &Path, rate: u64) -> Vm {
    let [kernel, path] = ["kernel", "disk"].map(|name| dir.join(name));
    std::fs::write(&kernel, tiny::bzimage()).unwrap();
    std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let bytes = Rate { per_second: rate.try_into().unwrap(), burst: 1.try_into().unwrap() };
    let limits = RateLimits { bytes: Some(bytes), operations: None };
    let config = Config {
        kernel: Some(kernel),
        initrd: None,
        append: tiny::command_line(16, 0),
        memory: 64 << 20,
        shares_memory: false,
        cpus: 1,
        cpu: Cpu::default(),
        disks: vec![Disk { path, read_only: false, create: None, limits }],
        lease: None,
        nets: Vec::new(),
        serial: Serial::None,
        control: None,
        incoming: None,
        restore: Restore::default(),
        tls: Tls::default(),
        kvm: None,
    };
    Vm::new(config, Box::new(std::io::sink())).unwrap()
}

/// A vCPU holds a device's lock while it waits for the device's thread, and that waits for the host. The driver, which
/// everybody needs, takes no device's lock while vCPUs run.
#[test]
fn a_device_that_a_vcpu_waits_for_keeps_no_user_waiting() {
    if let Err(error) = kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut vm = machine(dir.path(), RATE);
    vm.start();
    let disk = Arc::clone(&vm.machine.devices.disks[0]);
    let vcpu = disk.lock().unwrap();
    let (schema, nowhere) = (dir.path().join("schema"), Address::Unix(dir.path().join("nowhere")));
    let (done, all_done) = channel();
    let driver = std::thread::spawn(move || {
        assert!(vm.serve_user(Request::DumpSchema(schema)).is_ok());
        assert!(vm.serve_user(Request::Migrate(nowhere, Terms::default())).is_ok());
        assert!(vm.serve_user(Request::MigrateSetParameters(ParameterChange::default())).is_ok());
        done.send(()).unwrap();
        vm
    });
    let waited = all_done.recv_timeout(Duration::from_secs(60));
    drop(vcpu);
    drop(driver.join().unwrap());
    waited.expect("the driver waits for a lock");
}

/// After a reset no thread of the old machine's devices writes to memory.
#[test]
fn a_reset_leaves_no_device_of_the_old_machine_at_work() {
    if let Err(error) = kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut vm = machine(dir.path(), RATE);
    vm.start();
    for is_stopped in [false, true] {
        ask_for_much(&vm);
        if is_stopped {
            vm.stop().unwrap();
        }
        assert!(vm.reset(false).is_ok());
        let memory = vm.ram.guest();
        memory.write_slice(&vec![UNTOUCHED; PIECE as usize], GuestAddress(DATA)).unwrap();
        // Enough time for several further pieces to be read.
        std::thread::sleep(Duration::from_millis(300));
        let mut now = vec![0; PIECE as usize];
        memory.read_slice(&mut now, GuestAddress(DATA)).unwrap();
        assert!(
            now.iter().all(|byte| *byte == UNTOUCHED),
            "written after the reset, machine stopped before: {is_stopped}"
        );
        assert_eq!(vm.shared.run_state(), if is_stopped { RunState::Paused } else { RunState::Running });
    }
}

/// The first piece costs more tokens than come in days.
#[test]
fn no_reset_gives_a_disk_fresh_tokens() {
    if let Err(error) = kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut vm = machine(dir.path(), 1);
    vm.start();
    ask_for_much(&vm);
    for of_the_machine in [false, true] {
        if of_the_machine {
            assert!(vm.reset(false).is_ok());
        }
        // The queueing begins with a reset of the device.
        offer_much(&vm);
        std::thread::sleep(Duration::from_millis(300));
        assert!(!has_begun(&vm), "the disk goes on after a reset, of the machine: {of_the_machine}");
    }
}
