//! A machine of 20 devices in use by a guest, with the layouts of real devices; every codec gets the same structs and values.

mod cpu;
mod interrupts;
mod platform;
pub(crate) mod sections;
mod virtio;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use vmstate::Section;
use vmstate::section::Sections;

use cpu::Cpu;
use interrupts::{Apic, IoApic, Pic};
use platform::{AcpiGed, Flash, FwCfg, GlobalState, KvmClock, Pit, Rtc, Serial, Timers};
use virtio::{Block, Net};

macro_rules! machine {
    ($($device:ident: $type:ty = $value:expr, $idstr:literal / $instance:literal;)*) => {
        /// All devices as one value, for codecs without sections.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Encode, Decode)]
        pub(crate) struct Machine {
            $($device: $type,)*
        }

        impl Machine {
            /// The number of devices.
            pub(crate) const DEVICES: usize = [$($idstr),*].len();

            /// Creates the machine in use by a guest. Another `seed` gives other values of the same size.
            pub(crate) fn new(seed: u64) -> Self {
                Self { $($device: $value(seed),)* }
            }

            /// All devices as sections, as an embedder of vmstate registers them.
            pub(crate) fn sections(&mut self) -> Sections<'_> {
                let mut sections = Sections::new();
                $(sections.register($idstr, $instance, &mut self.$device as &mut dyn Section).expect("a new name");)*
                sections
            }
        }
    };
}

machine! {
    timers: Timers = Timers::new, "timer" / 0;
    fw_cfg: FwCfg = FwCfg::new, "fw_cfg" / 0;
    cpu0: Cpu = Cpu::new, "cpu" / 0;
    cpu1: Cpu = Cpu::new, "cpu" / 1;
    apic0: Apic = Apic::new, "apic" / 0;
    apic1: Apic = Apic::new, "apic" / 1;
    kvm_clock: KvmClock = KvmClock::new, "kvmclock" / 0;
    acpi_ged: AcpiGed = AcpiGed::new, "acpi-ged" / 0;
    io_apic: IoApic = IoApic::new, "ioapic" / 0;
    pic0: Pic = Pic::new, "i8259" / 0;
    pic1: Pic = Pic::new, "i8259" / 1;
    pit: Pit = Pit::new, "i8254" / 0;
    rtc: Rtc = Rtc::new, "mc146818rtc" / 0;
    serial: Serial = Serial::new, "serial" / 0;
    disk0: Block = Block::new, "0000:00:01.0/virtio-blk" / 0;
    disk1: Block = Block::new, "0000:00:02.0/virtio-blk" / 0;
    net0: Net = Net::new, "0000:00:03.0/virtio-net" / 0;
    net1: Net = Net::new, "0000:00:04.0/virtio-net" / 0;
    flash: Flash = Flash::new, "cfi.pflash01" / 0;
    global_state: GlobalState = GlobalState::new, "globalstate" / 0;
}
