//! ACPI generic event device of the machine: signals a pressed power button and a changed generation id to the guest, and
//! handles the guest's power-off and reset. Registers as in QEMU's `acpi-ged`, at the machine's fixed place (GSI 9,
//! edge-triggered).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vmstate::VmState;

use crate::bus::BusDevice;
use crate::devices::{Device, DeviceError};
use crate::irq::IrqLine;
use crate::machine_map::{
    GED_GENERATION, GED_POWER_BUTTON, GED_RESET, GED_RESET_VALUE, GED_SLEEP_CONTROL, SLEEP_TYPE_S5,
};

/// Register of pending events; a read clears it (QEMU's `ACPI_GED_EVT_SEL_OFFSET`).
const SELECTOR: u64 = 0;

/// Power request of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Power-off.
    Off,
    /// Restart.
    Reset,
}

/// The event device.
#[derive(VmState)]
#[vmstate(name = "acpi-ged", version = 1)]
#[vmstate(subsection(name = "acpi-ged/memhp", version = 1, needed = Self::always))]
pub struct Ged {
    ged_state: Events,
    #[vmstate(subsection = "acpi-ged/memhp")]
    memhp_state: MemoryHotplug,
    #[vmstate(skip)]
    irq: Arc<dyn IrqLine>,
    #[vmstate(skip)]
    on_power: Box<dyn FnMut(Power) + Send>,
}

#[derive(VmState, Debug, Default)]
#[vmstate(name = "acpi-ged-state", version = 1)]
struct Events {
    sel: u32,
}

/// Memory slots of QEMU's device, of which this machine has none.
#[derive(VmState, Debug, Default)]
#[vmstate(name = "memory hotplug state", version = 1)]
struct MemoryHotplug {
    selector: u32,
}

impl Ged {
    /// Makes a device without pending events. `on_power` runs on a vCPU's thread, so it must return at once.
    pub fn new(irq: Arc<dyn IrqLine>, on_power: Box<dyn FnMut(Power) + Send>) -> Self {
        Self { ged_state: Events::default(), memhp_state: MemoryHotplug::default(), irq, on_power }
    }

    /// Presses the power button: the guest may then shut down.
    pub fn press_power_button(&mut self) {
        self.notify(GED_POWER_BUTTON);
    }

    /// Signals that the generation id has changed.
    pub fn generation_changed(&mut self) {
        self.notify(GED_GENERATION);
    }

    fn notify(&mut self, event: u8) {
        self.ged_state.sel |= u32::from(event);
        self.pulse();
    }

    fn pulse(&self) {
        self.irq.set(true);
        self.irq.set(false);
    }

    fn always(&self) -> bool {
        true
    }
}

impl BusDevice for Ged {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (SELECTOR, Ok(word)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *word = std::mem::take(&mut self.ged_state.sel).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // SLP_EN is bit 5, SLP_TYP bits 2 to 4.
            (GED_SLEEP_CONTROL, [value]) if value & 0x20 != 0 && (value >> 2) & 7 == SLEEP_TYPE_S5 => {
                (self.on_power)(Power::Off);
            }
            (GED_RESET, [GED_RESET_VALUE]) => (self.on_power)(Power::Reset),
            _ => {}
        }
    }
}

impl Device for Ged {
    fn pause(&mut self, _deadline: Duration) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Raises the interrupt again if an event is pending: this host's interrupt controller has not seen its edge.
    fn resume(&mut self) {
        if self.ged_state.sel != 0 {
            self.pulse();
        }
    }
}

impl fmt::Debug for Ged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ged").field("ged_state", &self.ged_state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::TestLine;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};
    use vmstate::Section;
    use vmstate::codec::{Reader, Writer};

    fn ged() -> (Ged, Receiver<Power>) {
        let (sender, receiver) = channel();
        let on_power = Box::new(move |power| sender.send(power).unwrap());
        (Ged::new(Arc::new(TestLine::default()), on_power), receiver)
    }

    fn read(ged: &mut Ged) -> u32 {
        let mut word = [0xff; 4];
        ged.read(0, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn selector_shows_the_button_once() {
        let (mut ged, _) = ged();
        ged.press_power_button();
        assert_eq!(read(&mut ged), 2);
        assert_eq!(read(&mut ged), 0);
    }

    #[derive(Default)]
    struct Edges(AtomicUsize);

    impl IrqLine for Edges {
        fn set(&self, high: bool) {
            self.0.fetch_add(high.into(), Ordering::SeqCst);
        }
    }

    #[test]
    fn a_changed_generation_is_announced_besides_the_button_and_again_after_a_resume() {
        let line = Arc::new(Edges::default());
        let edges = || line.0.load(Ordering::SeqCst);
        let mut ged = Ged::new(line.clone(), Box::new(|_| {}));
        ged.press_power_button();
        ged.generation_changed();
        assert_eq!(edges(), 2);
        ged.resume();
        assert_eq!(edges(), 3);
        assert_eq!(read(&mut ged), 0x82);
        ged.resume();
        assert_eq!(edges(), 3);
    }

    #[test]
    fn registers_power_off_and_reset() {
        let (mut ged, power) = ged();
        for (offset, value) in [(0x200, 0x14), (0x200, 0x30), (0x201, 0x34), (0x202, 0x41), (0x203, 0x42)] {
            ged.write(offset, &[value]);
            assert!(power.try_recv().is_err(), "{value:#x} at {offset:#x} must have no effect");
        }
        ged.write(0x200, &[0x34]);
        assert_eq!(power.recv(), Ok(Power::Off));
        ged.write(0x202, &[0x42]);
        assert_eq!(power.recv(), Ok(Power::Reset));
        ged.write(0x200, &[0x34, 0, 0, 0]);
        assert!(power.try_recv().is_err(), "registers are bytes");
    }

    #[test]
    fn section_is_qemus() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/streams/microvm-kvm-acpi-ged.section");
        let bytes = std::fs::read(path).unwrap();
        let (mut ged, _) = ged();
        ged.press_power_button();
        ged.load(&mut Reader::strict(&bytes), 1).unwrap();
        let mut out = Writer::new();
        ged.save(&mut out).unwrap();
        assert_eq!(out.as_slice(), bytes);
        assert_eq!(read(&mut ged), 0);
        let mut pending = bytes.clone();
        pending[3] = 2;
        ged.load(&mut Reader::strict(&pending), 1).unwrap();
        assert_eq!(read(&mut ged), 2);
    }
}
