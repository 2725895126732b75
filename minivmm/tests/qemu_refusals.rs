//! State that a QEMU may send and that this machine lacks is refused by name, with QEMU's option to leave it out; the machine
//! is unchanged then, and takes a guest that fits.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use minivmm::kvm::state::Cpu;
use minivmm::migration::sections::{MachineState, Parts};
use vmstate::VmState;
use vmstate::codec::{Reader, Writer};
use vmstate::section::Sections;
use vmstate_lab::{qemu, skip};

const CPU_VERSION: u32 = 12;

struct Machine {
    state: Arc<Mutex<MachineState>>,
    sections: Sections<'static>,
}

impl Machine {
    fn new() -> Self {
        let state = Arc::new(Mutex::new(MachineState::new(1)));
        let parts = Parts {
            state: Arc::clone(&state),
            vcpus: 1,
            tickets: Arc::default(),
            devices: Vec::new(),
            generation: Arc::default(),
            bitmaps: Arc::default(),
            disks: Vec::new(),
        };
        Self { sections: parts.sections().unwrap(), state }
    }

    fn load(&mut self, idstr: &str, instance: u32, version: u32, body: &[u8]) -> Result<(), String> {
        self.sections.begin_load();
        let mut input = Reader::strict(body).complete();
        self.sections.load(idstr, instance, version, &mut input).map_err(|error| error.to_string())
    }

    fn cpu(&self) -> Cpu {
        self.state.lock().unwrap().hypervisor.vcpus[0].cpu.clone()
    }
}

/// Section `cpu` of a guest with this RIP, as QEMU sends it, followed by a subsection of version 1.
fn cpu_with(eip: u64, subsection: &str, body: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    let mut cpu = Cpu::default();
    cpu.eip = eip;
    vmstate::Section::save(&mut cpu, &mut out).unwrap();
    let header = [&[5, subsection.len() as u8], subsection.as_bytes(), &[0, 0, 0, 1]].concat();
    [&out.into_bytes(), &header, body].concat()
}

/// Names, instances and versions as sent by QEMU 10.
#[test]
fn devices_that_are_not_here_are_refused_with_qemus_option() {
    let mut machine = Machine::new();
    for (idstr, instance, version, option) in [
        ("mc146818rtc", 0, 3, "-M microvm,rtc=off"),
        ("ioapic", 1, 3, "-M microvm,ioapic2=off"),
        ("slirp", 0, 4, "a tap"),
        ("virtio-mmio@00000000feb00a00/virtio-rng", 0, 1, "both sides need the same devices"),
        ("cpu", 1, CPU_VERSION, "both sides need the same devices"),
        ("i8254", 1, 3, "-M microvm,pit=on"),
    ] {
        let why = machine.load(idstr, instance, version, &[0; 4096]).unwrap_err();
        let named = why.starts_with(&format!("{idstr}/{instance} at ")) && why.contains("this machine has no such ");
        assert!(named && why.contains(option), "{idstr}/{instance}: {why}");
    }
}

/// Bodies with the layout of target/i386/machine.c; AMX: eight tiles of a kilobyte after their configuration of 64 bytes.
#[test]
fn state_of_features_that_are_not_migrated_is_refused_with_the_feature_to_leave_out() {
    for (subsection, size, option) in [
        ("cpu/intel_amx_xtile", 64 + 8192, "-amx-tile"),
        ("cpu/msr_xfd", 16, "-xfd"),
        ("cpu/mpx", 4 * 16 + 3 * 8, "-mpx"),
        ("cpu/pkrs", 4, "-pks"),
        ("cpu/intel_pt", 8 * 4, "-intel-pt"),
        ("cpu/arch_lbr", 16, "-arch-lbr"),
        ("cpu/nested_state", 8, "-svm"),
        ("cpu/svm_guest", 8, "-svm"),
        ("cpu/msr_hyperv_time", 8, "hv-"),
        ("cpu/xen_vcpu", 40, "xen-version"),
    ] {
        let mut machine = Machine::new();
        machine.load("cpu", 0, CPU_VERSION, &cpu_with(1, "cpu/pkru", &[0, 0, 0, 4])).unwrap();
        let before = machine.cpu();
        let why = machine.load("cpu", 0, CPU_VERSION, &cpu_with(2, subsection, &vec![1; size])).unwrap_err();
        assert!(why.starts_with("cpu/0") && why.contains(option), "{subsection}: {why}");
        assert_eq!(machine.cpu(), before, "{subsection}");
        machine.load("cpu", 0, CPU_VERSION, &cpu_with(3, "cpu/pkru", &[0, 0, 0, 8])).unwrap();
        assert_eq!((machine.cpu().eip, machine.cpu().pkru), (3, 8), "{subsection}");
    }
}

/// State that QEMU sends for each guest that may use SVM, or is in 32-bit PAE paging, although minivmm has no other support for
/// it.
#[test]
fn what_each_guest_may_have_is_taken() {
    let mut machine = Machine::new();
    let one = (1_u64 << 32).to_be_bytes();
    machine.load("cpu", 0, CPU_VERSION, &cpu_with(1, "cpu/amd_tsc_scale_msr", &one)).unwrap();
    let entries: Vec<u8> = (1..=4_u64).flat_map(|entry| (entry << 12 | 1).to_be_bytes()).collect();
    machine.load("cpu", 0, CPU_VERSION, &cpu_with(2, "cpu/pdptrs", &entries)).unwrap();
    assert_eq!(machine.cpu().pdptrs, [0x1001, 0x2001, 0x3001, 0x4001]);
}

/// The oracle is QEMU's executable, which contains the names of all subsections of `cpu` as text between zeros: each is known,
/// or refused with what to do.
#[test]
fn each_subsection_that_qemu_has_is_taken_or_has_a_remedy() {
    let Ok(qemu) = qemu::at_least(qemu::NEEDED).map_err(skip::skip) else { return };
    let executable = std::fs::read(qemu).unwrap();
    let is_name = |text: &&str| {
        text.strip_prefix("cpu/")
            .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
    };
    let texts = executable.split(|byte| *byte == 0).filter(|text| text.starts_with(b"cpu/"));
    let names: BTreeSet<&str> = texts.filter_map(|text| std::str::from_utf8(text).ok()).filter(is_name).collect();
    assert!(names.len() > 30 && names.contains("cpu/msr_xfd"), "{names:?}");
    let known = |name: &str| Cpu::DESCRIPTION.subsections.iter().any(|subsection| &*subsection.name == name);
    // The struct in `cpu/nested_state` is refused by its content.
    for name in names.into_iter().filter(|name| !known(name) && *name != "cpu/kvm_nested_state") {
        let why = Machine::new().load("cpu", 0, CPU_VERSION, &cpu_with(1, name, &[1; 9000])).unwrap_err();
        assert!(why.contains(&format!("{name:?} is not known to \"cpu\": ")), "{name}: {why}");
    }
}
