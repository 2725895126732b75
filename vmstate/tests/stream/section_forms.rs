//! A section in every form in which a machine owns a device; a registry with all of them moves to another thread.

use std::sync::{Arc, Mutex, RwLock};
use std::thread;

use vmstate::codec::{Reader, Writer};
use vmstate::section::Sections;
use vmstate::{ErrorKind, Section, VmState};

#[derive(VmState, Default)]
#[vmstate(name = "device", priority = 3, needed = Self::is_on)]
struct Device {
    value: u8,
}

impl Device {
    fn is_on(&self) -> bool {
        self.value != 0
    }
}

/// A machine's own trait for devices on its bus.
trait OnBus: Section {
    fn value(&self) -> u8;
}

impl OnBus for Device {
    fn value(&self) -> u8 {
        self.value
    }
}

/// A generic struct: a section for each parameter that is `Send`.
#[derive(VmState, Default)]
#[vmstate(name = "pair")]
struct Pair<T>(T, T);

fn device(value: u8) -> Device {
    Device { value }
}

/// Registers each as an instance on this thread, then saves and loads all on another one; returns the saved bytes.
fn moved_to_a_thread(mut sections: Sections<'_>) -> Vec<u8> {
    thread::scope(|scope| {
        let saved = scope.spawn(move || {
            let mut out = Writer::new();
            for section in sections.in_order() {
                section.save(&mut out).unwrap();
            }
            let saved = out.into_bytes();
            let mut input = Reader::strict(&[7; 32]);
            let names: Vec<_> =
                sections.in_order().iter().map(|entry| (entry.idstr().to_owned(), entry.instance())).collect();
            for (name, instance) in names {
                sections.load(&name, instance, 1, &mut input).unwrap();
            }
            saved
        });
        saved.join().unwrap()
    })
}

#[test]
fn all_forms_save_and_load_on_another_thread() {
    let (mut first, mut second, mut third) = (device(1), device(2), device(3));
    let mut boxed: Box<dyn OnBus> = Box::new(device(4));
    let mut bus: Vec<Box<dyn OnBus>> = vec![Box::new(device(5)), Box::new(device(6))];
    let shared = Arc::new(Mutex::new(device(7)));
    let shared_on_bus: Arc<Mutex<dyn OnBus>> = Arc::new(Mutex::new(device(8)));
    let shared_in_box: Arc<Mutex<Box<dyn OnBus>>> = Arc::new(Mutex::new(Box::new(device(9))));
    let read_often = Arc::new(RwLock::new(device(10)));
    let read_often_on_bus: Arc<RwLock<dyn OnBus + Sync>> = Arc::new(RwLock::new(device(11)));
    let mut sections = Sections::new();
    sections.add(&mut first).unwrap();
    sections.add(&mut second as &mut dyn Section).unwrap();
    sections.add(&mut third as &mut (dyn Section + Send)).unwrap();
    sections.add(&mut boxed).unwrap();
    for device in &mut bus {
        sections.add(device).unwrap();
    }
    sections.add(Arc::clone(&shared)).unwrap();
    sections.add(Arc::clone(&shared_on_bus)).unwrap();
    sections.add(Arc::clone(&shared_in_box)).unwrap();
    sections.add(Arc::clone(&read_often)).unwrap();
    sections.add(Arc::clone(&read_often_on_bus)).unwrap();
    sections.add(device(12)).unwrap();
    sections.add(Box::new(device(13))).unwrap();
    sections.add(Box::new(device(14)) as Box<dyn Section>).unwrap();
    sections.add(Box::new(device(15)) as Box<dyn Section + Send>).unwrap();
    sections.add(Pair(16_u8, 17)).unwrap();
    assert_eq!(moved_to_a_thread(sections), (1..=17).collect::<Vec<u8>>());
    assert_eq!([first.value, second.value, third.value, boxed.value(), bus[0].value(), bus[1].value()], [7; 6]);
    assert_eq!([shared.lock().unwrap().value, shared_on_bus.lock().unwrap().value()], [7; 2]);
    assert_eq!(shared_in_box.lock().unwrap().value(), 7);
    assert_eq!([read_often.read().unwrap().value, read_often_on_bus.read().unwrap().value()], [7; 2]);
}

#[test]
fn a_registry_goes_to_a_thread_of_its_own() {
    fn is_send<T: Send + 'static>(value: T) -> T {
        value
    }
    let mut sections = is_send(Sections::new());
    sections.add(device(1)).unwrap();
    let mut sections = thread::spawn(move || sections).join().unwrap();
    assert_eq!(sections.in_order().len(), 1);
}

/// Each form of a device that sets rules for its section.
fn forms(value: u8) -> Vec<Box<dyn Section>> {
    vec![
        Box::new(device(value)),
        Box::new(Box::new(device(value))),
        Box::new(Box::leak(Box::new(device(value)))),
        Box::new(Arc::new(Mutex::new(device(value)))),
        Box::new(Arc::new(RwLock::new(device(value)))),
    ]
}

#[test]
fn a_form_passes_on_the_devices_rules() {
    for section in forms(1) {
        assert_eq!((section.rules().priority, section.is_needed()), (3, true));
        assert_eq!(&*section.description().name, "device");
    }
    assert!(forms(0).iter().all(|section| !section.is_needed()));
}

#[test]
fn a_form_keeps_the_device_when_its_load_fails() {
    for mut section in forms(5) {
        assert_eq!(section.load(&mut Reader::strict(&[]), 1).unwrap_err().kind(), ErrorKind::Incomplete);
        let mut out = Writer::new();
        section.save(&mut out).unwrap();
        assert_eq!(out.into_bytes(), [5]);
    }
}

#[test]
fn a_device_whose_thread_panicked_neither_saves_nor_loads() {
    let mutex = Arc::new(Mutex::new(device(1)));
    let lock = Arc::new(RwLock::new(device(1)));
    let (panicking, panicking_too) = (Arc::clone(&mutex), Arc::clone(&lock));
    let panicked = thread::spawn(move || {
        let _guards = (panicking.lock(), panicking_too.write());
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.join().is_err());
    for mut section in [Box::new(mutex) as Box<dyn Section>, Box::new(lock)] {
        let text = "a thread panicked while it changed this device";
        assert!(section.is_needed(), "so that its save can refuse");
        let error = section.save(&mut Writer::new()).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Rejected, text));
        let error = section.load(&mut Reader::strict(&[1]), 1).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Rejected, text));
    }
}
