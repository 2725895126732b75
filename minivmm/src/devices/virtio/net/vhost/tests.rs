//! Requests to the kernel and their order, with a fake kernel that records them. The end-to-end case `packets_both_ways` uses a
//! real one.

use std::sync::MutexGuard;

use ::vhost::{Result as VhostResult, VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionBase};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::queue::Layout;

const RING: Layout = Layout { size: 8, descriptors: 0x1000, available: 0x2000, used: 0x3000 };

/// VHOST_F_LOG_ALL of linux/vhost.h.
const LOGGED: u64 = 1 << 26;

struct Fake {
    can: u64,
    calls: Mutex<Vec<String>>,
    /// Index that a queue reports when it stops.
    stopped_at: u32,
    refused: Mutex<Option<&'static str>>,
}

impl Fake {
    fn note(&self, call: String) -> VhostResult<()> {
        let refused = self.refused.lock().unwrap().is_some_and(|refused| call.starts_with(refused));
        self.calls.lock().unwrap().push(call);
        if refused { Err(Error::IoctlError(io::Error::from_raw_os_error(libc::ENOMEM))) } else { Ok(()) }
    }
}

impl VhostNet for Fake {
    fn set_backend(&self, queue: usize, tap: Option<&File>) -> VhostResult<()> {
        self.note(format!("backend {queue} {}", if tap.is_some() { "tap" } else { "none" }))
    }
}

impl VhostBackend for Fake {
    fn get_features(&self) -> VhostResult<u64> {
        Ok(self.can)
    }
    fn set_features(&self, features: u64) -> VhostResult<()> {
        self.note(format!("features {features:#x}"))
    }
    fn set_owner(&self) -> VhostResult<()> {
        self.note("owner".into())
    }
    fn reset_owner(&self) -> VhostResult<()> {
        self.note("reset owner".into())
    }
    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegionInfo],
    ) -> VhostResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(|region| format!(" {:#x}+{:#x}", region.guest_phys_addr, region.memory_size));
        self.note(format!("memory{}", regions.collect::<String>())).map(|()| None)
    }
    fn set_log_base(&self, _: u64, region: Option<VhostUserDirtyLogRegion>) -> VhostResult<()> {
        assert!(region.is_none(), "a region is vhost-user's");
        self.note("log".into())
    }
    fn set_log_fd(&self, _: RawFd) -> VhostResult<()> {
        self.note("log fd".into())
    }
    fn set_vring_num(&self, queue: usize, size: u16) -> VhostResult<()> {
        self.note(format!("size {queue} {size}"))
    }
    fn set_vring_addr(&self, queue: usize, at: &VringConfigData) -> VhostResult<()> {
        let VringConfigData { desc_table_addr, avail_ring_addr, used_ring_addr, flags, log_addr, .. } = at;
        let log = log_addr.map(|at| format!(" log {at:#x}")).unwrap_or_default();
        self.note(format!(
            "addr {queue} {desc_table_addr:#x} {avail_ring_addr:#x} {used_ring_addr:#x} flags {flags}{log}"
        ))
    }
    fn set_vring_base(&self, queue: usize, next: u16) -> VhostResult<()> {
        self.note(format!("base {queue} {next}"))
    }
    fn get_vring_base(&self, queue: usize) -> VhostResult<u32> {
        self.note(format!("where {queue}")).map(|()| self.stopped_at)
    }
    fn set_vring_call(&self, queue: usize, _: &EventFd) -> VhostResult<()> {
        self.note(format!("call {queue}"))
    }
    fn set_vring_kick(&self, queue: usize, _: &EventFd) -> VhostResult<()> {
        self.note(format!("kick {queue}"))
    }
    fn set_vring_err(&self, queue: usize, _: &EventFd) -> VhostResult<()> {
        self.note(format!("err {queue}"))
    }
}

struct Rig {
    ram: Ram,
    vhost: Arc<Vhost<Fake>>,
    rings: Vec<Ring>,
    kicks: Vec<EventFd>,
}

impl Rig {
    fn new() -> Self {
        let ram = Ram::new(1 << 20).unwrap();
        let vhost = Arc::new(Vhost::with(Self::kernel(u64::MAX), File::open("/dev/null").unwrap(), &ram).unwrap());
        ram.add_writer(vhost.clone());
        let ring = |next| Ring::loaded_at(RING, 0, next, ram.guest()).unwrap();
        let rings = vec![ring(5), ring(7), ring(9)];
        let kicks = rings.iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let rig = Self { ram, vhost, rings, kicks };
        rig.asked();
        rig
    }

    fn kernel(can: u64) -> Fake {
        Fake { can, calls: Mutex::default(), stopped_at: 0x8000_0000 | 12, refused: Mutex::default() }
    }

    fn start(&self) -> Result<(), Broken> {
        self.vhost.start(&self.rings, FEATURES | 1 << 5, &self.kicks)
    }

    fn stop(&mut self) -> Result<(), Broken> {
        self.vhost.stop(&mut self.rings, self.ram.guest())
    }

    /// Requests since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls())
    }

    fn calls(&self) -> MutexGuard<'_, Vec<String>> {
        self.vhost.kernel.calls.lock().unwrap()
    }

    fn written(&self) -> u64 {
        let mut words = [0; 4];
        self.ram.take_device_writes(&mut words);
        words[0]
    }
}

/// The order of QEMU's `vhost_dev_start` and `vhost_virtqueue_start` (hw/virtio/vhost.c), and then `vhost_net_set_backend`.
#[test]
fn queues_are_started_from_where_the_rings_are_and_only_those_of_frames() {
    let rig = Rig::new();
    rig.start().unwrap();
    let queue = |number, next| {
        [
            format!("size {number} 8"),
            format!("base {number} {next}"),
            format!("addr {number} 0x1000 0x2000 0x3000 flags 0"),
            format!("kick {number}"),
            format!("call {number}"),
            format!("err {number}"),
        ]
    };
    let features = vec![format!("features {FEATURES:#x}")];
    let backends = vec!["backend 0 tap".to_owned(), "backend 1 tap".to_owned()];
    assert_eq!(rig.asked(), [features, queue(0, 5).into(), queue(1, 7).into(), backends].concat());
    assert_eq!(rig.kicks.iter().map(|kick| kick.read().is_ok()).collect::<Vec<_>>(), [true, true, false]);
    rig.start().unwrap();
    assert!(rig.asked().is_empty(), "it runs");
}

#[test]
fn whoever_stops_it_has_the_rings_as_it_left_them_and_its_last_interrupt() {
    let mut rig = Rig::new();
    rig.stop().unwrap();
    assert!(rig.asked().is_empty(), "a stopped queue must get no request");
    rig.start().unwrap();
    rig.asked();
    rig.vhost.used.write(1).unwrap();
    // The used index follows the flags.
    rig.ram.guest().write_obj(11_u16, GuestAddress(RING.used + 2)).unwrap();
    rig.stop().unwrap();
    assert_eq!(rig.asked(), ["backend 0 none", "backend 1 none", "where 0", "where 1"]);
    assert_eq!(rig.rings.iter().map(Ring::next_available).collect::<Vec<_>>(), [12, 12, 9]);
    assert_eq!(rig.vhost.take_interrupt(), Ok(true));
    assert_eq!(rig.vhost.take_interrupt(), Ok(false));
    rig.start().unwrap();
    let asked = rig.asked();
    assert!(asked.contains(&"base 0 12".to_owned()) && asked.contains(&"base 1 12".to_owned()), "{asked:?}");
    rig.vhost.broken.write(1).unwrap();
    rig.vhost.take_interrupt().unwrap_err();
}

/// QEMU's `vhost_dev_set_log`: features, then addresses.
#[test]
fn what_it_writes_is_recorded_while_the_dirty_log_is_on_whether_it_ran_before_or_not() {
    let mut rig = Rig::new();
    let address = |queue, log: &str| format!("addr {queue} 0x1000 0x2000 0x3000 {log}");
    let on = ["flags 1 log 0x3000"].map(|log| [address(0, log), address(1, log)]).concat();
    let off = ["flags 0"].map(|log| [address(0, log), address(1, log)]).concat();
    let features = |bits: u64| vec![format!("features {:#x}", FEATURES | bits)];
    rig.start().unwrap();
    rig.asked();
    rig.ram.record_others(true).unwrap();
    assert_eq!(rig.asked(), [features(LOGGED), on.clone()].concat());

    rig.stop().unwrap();
    rig.asked();
    rig.start().unwrap();
    let asked = rig.asked();
    assert!(asked.contains(&features(LOGGED)[0]) && on.iter().all(|line| asked.contains(line)), "{asked:?}");

    rig.ram.record_others(false).unwrap();
    assert_eq!(rig.asked(), [features(0), off].concat());
}

/// The log is read a last time after the stop.
#[test]
fn pages_that_it_wrote_before_it_stopped_are_found_behind_the_stop_and_once() {
    let mut rig = Rig::new();
    rig.start().unwrap();
    // A bit from before the log was switched on.
    rig.vhost.log.set(0x5000);
    rig.ram.record_others(true).unwrap();
    rig.vhost.log.set(0x3000);
    rig.vhost.log.set(0x2_0fff);
    rig.stop().unwrap();
    assert_eq!(rig.written(), 1 << 3 | 1 << 0x20);
    assert_eq!(rig.written(), 0);
}

#[test]
fn a_host_that_refuses_leaves_nothing_running() {
    let mut rig = Rig::new();
    *rig.vhost.kernel.refused.lock().unwrap() = Some("backend 1 tap");
    let Broken(why) = rig.start().unwrap_err();
    assert!(why.starts_with("the host's vhost-net refuses VHOST_NET_SET_BACKEND: "), "{why}");
    assert_eq!(rig.asked().last_chunk(), Some(&["backend 0 none".to_owned(), "backend 1 none".to_owned()]));
    rig.stop().unwrap();
    assert!(rig.asked().is_empty());

    *rig.vhost.kernel.refused.lock().unwrap() = None;
    rig.start().unwrap();
    *rig.vhost.kernel.refused.lock().unwrap() = Some("addr 1");
    rig.ram.record_others(true).unwrap_err();
    *rig.vhost.kernel.refused.lock().unwrap() = None;
    rig.asked();
    rig.stop().unwrap();
    rig.start().unwrap();
    assert!(rig.asked().contains(&format!("features {FEATURES:#x}")), "logging must be off");
}

#[test]
fn a_kernel_without_what_a_card_needs_is_refused_when_it_is_opened() {
    let ram = Ram::new(1 << 20).unwrap();
    let open = |can| Vhost::with(Rig::kernel(can), File::open("/dev/null").unwrap(), &ram).map(drop);
    open(FEATURES | LOGGED).unwrap();
    let error = open(FEATURES).unwrap_err().to_string();
    assert_eq!(
        error,
        "vhost=on: the host's vhost-net does not have all that a card needs: it lacks features 0x4000000; leave it out, and minivmm \
         moves the frames itself"
    );
}

/// On a host without vhost-net, the message says what is missing.
#[test]
fn a_host_without_vhost_net_gets_a_remedy() {
    let ram = Ram::new(1 << 20).unwrap();
    if let Err(error) = Vhost::open(&File::open("/dev/null").unwrap(), &ram) {
        assert!(error.to_string().contains("the kernel's module vhost_net"), "{error}");
    }
}
