//! A card with a data plane, as vhost-net is. Here the data plane does all its work when it is stopped.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use minivmm::devices::Device;
use minivmm::devices::virtio::net::{Backend, DataPlane, Net, Offloads};
use minivmm::devices::virtio::{Broken, Ring};
use minivmm::memory::GuestMemory;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::{BUFFERS, Driver, TIMEOUT, memory};
use crate::net::{CONTROL, CTRL_VQ, MAC, Network, TRANSMIT, Wire, frame, send, wire};
use crate::state::move_to;

struct Plane {
    running: AtomicBool,
    /// Lengths of the frames that the data plane moved.
    moved: Mutex<Vec<u64>>,
    used: EventFd,
}

impl DataPlane for Plane {
    fn fd(&self) -> RawFd {
        self.used.as_raw_fd()
    }

    fn start(&self, rings: &[Ring], _features: u64, kicks: &[EventFd]) -> Result<(), Broken> {
        assert!(rings[..CONTROL].iter().all(Ring::is_ready) && kicks.len() == rings.len());
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn stop(&self, rings: &mut [Ring], memory: &GuestMemory) -> Result<(), Broken> {
        if self.running.swap(false, Ordering::SeqCst) {
            while let Some(chain) = rings[TRANSMIT].pop(memory)? {
                self.moved.lock().unwrap().push(chain.readable.len());
                rings[TRANSMIT].complete(memory, chain.head, 0)?;
                self.used.write(1).unwrap();
            }
        }
        Ok(())
    }

    fn take_interrupt(&self) -> Result<bool, Broken> {
        Ok(self.used.read().is_ok())
    }
}

struct SeparatePlane {
    wire: Wire,
    plane: Arc<Plane>,
}

impl Backend for SeparatePlane {
    fn fd(&self) -> RawFd {
        self.wire.fd()
    }
    fn receive(&self, _: &mut [u8]) -> io::Result<usize> {
        panic!("the card's thread takes a frame");
    }
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.wire.send(frame)
    }
    fn offloads(&self) -> Offloads {
        self.wire.offloads()
    }
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.wire.set_offloads(offloads)
    }
    fn data_plane(&self) -> Option<&dyn DataPlane> {
        Some(&*self.plane)
    }
}

fn card() -> (Driver<Net<SeparatePlane>>, Arc<Plane>, Network) {
    let (wire, network) = wire(Offloads::ALL);
    let used = EventFd::new(EFD_NONBLOCK).unwrap();
    let plane = Arc::new(Plane { running: false.into(), moved: Mutex::default(), used });
    let mut driver = Driver::new(Net::new(SeparatePlane { wire, plane: plane.clone() }, MAC), memory());
    assert!(!plane.running.load(Ordering::SeqCst), "no driver yet");
    driver.start(CTRL_VQ);
    until_running(&mut driver, &plane, true);
    (driver, plane, network)
}

fn until_running(driver: &mut Driver<Net<SeparatePlane>>, plane: &Plane, running: bool) {
    driver.until("the mover", |_| plane.running.load(Ordering::SeqCst) == running);
}

#[test]
fn it_has_stopped_when_the_device_has_and_another_card_goes_on_from_there() {
    let (mut driver, plane, _network) = card();
    driver.queues[TRANSMIT].offer(&[(BUFFERS, 100, false)]);
    driver.notify(TRANSMIT);
    driver.device.pause(TIMEOUT).unwrap();
    assert!(!plane.running.load(Ordering::SeqCst));
    assert_eq!(*plane.moved.lock().unwrap(), [100], "by the mover alone");
    assert!(driver.line.is_high(), "its last interrupt is the guest's");
    assert_eq!(driver.queues[TRANSMIT].wait_used(), (0, 0));

    let (there, network) = wire(Offloads::ALL);
    let mut driver = move_to(driver, Net::new(there, MAC));
    // The card's own announcement comes first.
    network.frame();
    let bytes = frame(&[7; 60]);
    send(&mut driver, &bytes, 1000);
    assert_eq!(network.frame(), bytes, "and not the one that was sent");
}

#[test]
fn it_goes_on_after_a_pause_and_is_told_of_to_the_driver() {
    let (mut driver, plane, _network) = card();
    driver.device.pause(TIMEOUT).unwrap();
    driver.device.resume();
    until_running(&mut driver, &plane, true);
    assert!(!driver.line.is_high());
    plane.used.write(1).unwrap();
    driver.until("an interrupt", |driver| driver.line.is_high());
}

#[test]
fn it_stops_with_a_reset_and_with_a_broken_device() {
    let (mut driver, plane, _network) = card();
    driver.write32(0x070, 0);
    assert!(!plane.running.load(Ordering::SeqCst));
    driver.queues.iter_mut().for_each(|queue| queue.forget());
    driver.start(CTRL_VQ);
    until_running(&mut driver, &plane, true);
    // A command without a place for its answer.
    driver.queues[CONTROL].offer(&[(BUFFERS, 2, false)]);
    driver.notify(CONTROL);
    until_running(&mut driver, &plane, false);
    driver.until("the need for a reset", |driver| driver.read32(0x070) & 0x40 != 0);
}
