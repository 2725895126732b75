//! The driver with the tiny guest on a real `/dev/kvm`: stop, cont, reset, power-off, and refused requests.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use minivmm::config::{Config, Cpu, Restore, Serial, Tls};
use minivmm::vm::{End, Handle, Keyboard, Request, RunState, Vm};
use vmstate_lab::{image, tiny};

const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn wait(&self, what: &str, enough: impl Fn(&str) -> bool) {
        let until = Instant::now() + TIMEOUT;
        while !enough(&self.text()) {
            assert!(Instant::now() < until, "no {what} within {TIMEOUT:?}: {}", self.text());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_for_more(&self) {
        let lines = self.text().lines().count();
        self.wait("more passes", |text| text.lines().count() > lines + 2);
    }
}

struct Running {
    handle: Handle,
    keyboard: Keyboard,
    screen: Screen,
    thread: JoinHandle<End>,
    _dir: tempfile::TempDir,
}

fn start(cpus: u8) -> Option<Running> {
    start_image(cpus, tiny::bzimage())
}

/// Starts the image; prints that the test is skipped and returns `None` without KVM.
fn start_image(cpus: u8, image: Vec<u8>) -> Option<Running> {
    if let Err(error) = minivmm::kvm::open() {
        vmstate_lab::skip::skip(error);
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("tiny");
    std::fs::write(&kernel, image).unwrap();
    let config = Config {
        kernel: Some(kernel),
        initrd: None,
        append: tiny::command_line(16, 0x10),
        memory: 32 << 20,
        shares_memory: false,
        cpus,
        cpu: Cpu::default(),
        disks: Vec::new(),
        lease: None,
        nets: Vec::new(),
        serial: Serial::None,
        control: None,
        incoming: None,
        restore: Restore::default(),
        tls: Tls::default(),
        kvm: None,
    };
    let screen = Screen::default();
    let vm = Vm::new(config, Box::new(screen.clone())).unwrap();
    let (handle, keyboard) = (vm.handle(), vm.keyboard());
    let thread = std::thread::spawn(move || vm.run());
    Some(Running { handle, keyboard, screen, thread, _dir: dir })
}

#[test]
fn stops_goes_on_resets_and_powers_off() {
    let Some(vm) = start(2) else { return };
    vm.screen.wait_for_more();
    assert_eq!(vm.handle.run_state(), RunState::Running);
    vm.handle.ask(Request::Stop).unwrap();
    vm.handle.ask(Request::Stop).unwrap();
    assert_eq!(vm.handle.run_state(), RunState::Paused);
    // Output before the stop is complete when the stop has been carried out.
    let stopped = vm.screen.text();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(vm.screen.text(), stopped);
    vm.handle.ask(Request::Cont).unwrap();
    vm.screen.wait_for_more();
    assert_eq!(vm.screen.text().matches(tiny::BANNER).count(), 1);

    for times in 2..5 {
        assert_eq!(vm.keyboard.send(b"r"), 1);
        vm.screen.wait("banner after reset", |text| text.matches(tiny::BANNER).count() == times);
        vm.screen.wait_for_more();
    }
    vm.handle.ask(Request::Reset).unwrap();
    vm.screen.wait("banner after the user's reset", |text| text.matches(tiny::BANNER).count() == 5);
    assert!(!vm.screen.text().contains('E'), "{}", vm.screen.text());

    assert_eq!(vm.keyboard.send(b"q"), 1);
    assert_eq!(vm.thread.join().unwrap(), End::PoweredOff);
    assert_eq!(vm.handle.run_state(), RunState::Shutdown);
    assert!(vm.handle.ask(Request::Cont).is_err(), "the driver has ended");
}

#[test]
fn quits_while_stopped_and_while_running() {
    for stop in [false, true] {
        let Some(vm) = start(1) else { return };
        vm.screen.wait_for_more();
        if stop {
            vm.handle.ask(Request::Stop).unwrap();
        }
        vm.handle.ask(Request::Quit).unwrap();
        assert_eq!(vm.thread.join().unwrap(), End::Quit);
    }
}

/// The first instruction is fetched from an address without memory, where no KVM can continue.
#[test]
fn a_vcpu_that_cannot_go_on_ends_the_machine_with_a_reason() {
    // mov $0xd0000000, %eax; jmp *%rax
    let Some(vm) = start_image(1, tiny::with_code(&[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0])) else { return };
    match vm.thread.join().unwrap() {
        End::Failed(why) => {
            assert!(why.starts_with("vCPU 0: KVM internal error 1") && why.contains("0xd0000000"), "{why}")
        }
        end => panic!("{end:?}"),
    }
}

/// The guest checks the magic number at EBX and prints the first letter of its command line.
#[test]
fn pvh_kernels_start_with_their_start_info() {
    let code = [
        0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, // cmpl $0x336ec578, (%ebx)
        0x75, 0x0a, // jne over the print
        0x8b, 0x73, 0x18, // mov 24(%ebx), %esi: cmdline_paddr
        0x8a, 0x06, // mov (%esi), %al
        0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
        0xee, // out %al, %dx
        0xf4, 0xeb, 0xfd, // hlt; jmp back
    ];
    let Some(vm) = start_image(1, image::pvh_elf(0x100_0000, &code)) else { return };
    // 16 pages: "10 10".
    vm.screen.wait("letter", |text| text == "1");
    vm.handle.ask(Request::Quit).unwrap();
    assert_eq!(vm.thread.join().unwrap(), End::Quit);
}

/// All bytes of a string instruction use the same port: the scratch register, then the transmitter.
#[test]
fn string_instructions_stay_at_one_port() {
    let code = [
        0xb0, b'S', 0x66, 0xba, 0xff, 0x03, 0xee, // mov $'S', %al; mov $0x3ff, %dx; out %al, %dx
        0xbf, 0, 0, 0x08, 0, 0xb9, 4, 0, 0, 0, // mov $0x80000, %edi; mov $4, %ecx
        0xf3, 0x6c, // rep insb
        0xbe, 0, 0, 0x08, 0, 0xb9, 4, 0, 0, 0, // mov $0x80000, %esi; mov $4, %ecx
        0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e, // mov $0x3f8, %dx; rep outsb
        0xf4, 0xeb, 0xfd, // hlt; jmp back
    ];
    let Some(vm) = start_image(1, tiny::with_code(&code)) else { return };
    vm.screen.wait("four letters", |text| text.len() == 4);
    assert_eq!(vm.screen.text(), "SSSS");
    vm.handle.ask(Request::Quit).unwrap();
    assert_eq!(vm.thread.join().unwrap(), End::Quit);
}

/// A real machine resets when its CPU shuts down.
#[test]
fn a_triple_fault_resets() {
    // mov $'X', %al; mov $0x3f8, %dx; out %al, %dx; ud2, with no handler for it
    let Some(vm) = start_image(1, tiny::with_code(&[0xb0, b'X', 0x66, 0xba, 0xf8, 0x03, 0xee, 0x0f, 0x0b])) else {
        return;
    };
    vm.screen.wait("third boot", |text| text.starts_with("XXX"));
    vm.handle.ask(Request::Quit).unwrap();
    assert_eq!(vm.thread.join().unwrap(), End::Quit);
}
