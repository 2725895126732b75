//! `Arc`, `Rc` and `&mut`: the bytes of their contents; a load changes the value that other holders see, and an undo restores it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{
    AtomicBool, AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering,
};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use vmstate::codec::{Reader, Writer};
use vmstate::testing::bytes;
use vmstate::{ErrorKind, VmState};

#[derive(VmState, Default)]
#[vmstate(name = "regs")]
struct Regs {
    control: u8,
    #[vmstate(skip)]
    host: u32,
}

#[derive(VmState, Default, Clone)]
#[vmstate(name = "shared")]
struct Shared {
    level: Arc<AtomicU16>,
    mutex: Arc<Mutex<Regs>>,
    lock: Arc<RwLock<(u8, bool)>>,
}

const SAVED: &[u8] = b"\x12\x34\x05\x06\x01";

#[test]
fn what_is_shared_stays_shared() {
    let mut device = Shared::default();
    device.mutex.lock().unwrap().host = 9;
    let other = device.clone();
    device.load_or_keep(&mut Reader::strict(SAVED), 1).unwrap();
    assert!(Arc::ptr_eq(&device.level, &other.level));
    assert!(Arc::ptr_eq(&device.mutex, &other.mutex) && Arc::ptr_eq(&device.lock, &other.lock));
    assert_eq!(other.level.load(Ordering::SeqCst), 0x1234);
    let regs = other.mutex.lock().unwrap();
    assert_eq!((regs.control, regs.host), (5, 9));
    drop(regs);
    assert_eq!(*other.lock.read().unwrap(), (6, true));
    assert_eq!(bytes(&mut device), SAVED);
}

#[test]
fn a_failed_load_restores_the_value_that_others_see() {
    let mut device = Shared::default();
    let other = device.clone();
    device.load_or_keep(&mut Reader::strict(SAVED), 1).unwrap();
    for end in 0..SAVED.len() {
        let cut: Vec<u8> = SAVED[..end].iter().map(|byte| byte ^ 0xff).collect();
        device.load_or_keep(&mut Reader::strict(&cut), 1).unwrap_err();
        assert_eq!(bytes(&mut other.clone()), SAVED, "cut at {end}");
    }
    let error = device.load_or_keep(&mut Reader::strict(b"\0\0\0\0\x02"), 1).unwrap_err();
    assert_eq!(error.to_string(), "lock › 1 at 0x4: a bool is 0 or 1, got 2");
    assert_eq!(bytes(&mut other.clone()), SAVED);
}

#[test]
fn a_value_that_two_fields_share_is_put_back_once_more() {
    #[derive(VmState)]
    #[vmstate(name = "twice")]
    struct Twice(Arc<Mutex<u8>>, Arc<Mutex<u8>>, bool);

    let value = Arc::new(Mutex::new(1));
    let mut twice = Twice(Arc::clone(&value), Arc::clone(&value), false);
    twice.load_or_keep(&mut Reader::strict(&[2, 3, 4]), 1).unwrap_err();
    assert_eq!(*value.lock().unwrap(), 1);
}

#[derive(VmState, Default)]
#[vmstate(name = "atomics")]
struct Atomics(
    Arc<AtomicBool>,
    Arc<AtomicU8>,
    Arc<AtomicU16>,
    Arc<AtomicU32>,
    Arc<AtomicU64>,
    Arc<AtomicI8>,
    Arc<AtomicI16>,
    Arc<AtomicI32>,
    Arc<AtomicI64>,
);

#[test]
fn shared_atomics_are_the_integers_they_hold() {
    let wire = b"\x01\x12\x12\x34\x12\x34\x56\x78\x12\x34\x56\x78\x9a\xbc\xde\xf0\
          \xfe\xff\xfd\xff\xff\xff\xfc\xff\xff\xff\xff\xff\xff\xff\xfb";
    let mut atomics = Atomics::default();
    let seen = Arc::clone(&atomics.8);
    atomics.load_or_keep(&mut Reader::strict(wire), 1).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), -5);
    assert_eq!(bytes(&mut atomics), wire);
}

#[derive(VmState, Default)]
#[vmstate(name = "counted")]
struct OnOneThread {
    cell: Rc<Cell<u16>>,
    ref_cell: Rc<RefCell<[u8; 2]>>,
}

#[test]
fn cells_that_are_shared_on_one_thread() {
    let mut device = OnOneThread::default();
    let (cell, ref_cell) = (Rc::clone(&device.cell), Rc::clone(&device.ref_cell));
    device.load_or_keep(&mut Reader::strict(&[0, 1, 2, 3]), 1).unwrap();
    assert_eq!((cell.get(), *ref_cell.borrow()), (1, [2, 3]));
    device.load_or_keep(&mut Reader::strict(&[9, 9, 9]), 1).unwrap_err();
    assert_eq!((cell.get(), *ref_cell.borrow()), (1, [2, 3]));
    let borrowed = ref_cell.borrow_mut();
    let error = device.load_or_keep(&mut Reader::strict(&[9, 9, 9, 9]), 1).unwrap_err();
    assert_eq!((error.kind(), error.path().as_str(), error.offset()), (ErrorKind::Misuse, "ref_cell", Some(2)));
    assert_eq!(vmstate::Wire::save(&mut device, &mut Writer::new()).unwrap_err().kind(), ErrorKind::Misuse);
    drop(borrowed);
    assert_eq!((cell.get(), *ref_cell.borrow()), (1, [2, 3]));
}

#[test]
fn a_save_waits_for_a_lock_that_a_thread_holds() {
    let mut device = Shared::default();
    let other = device.clone();
    let (held, is_held) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let mut regs = other.mutex.lock().unwrap();
        held.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        regs.control = 7;
    });
    is_held.recv().unwrap();
    assert_eq!(bytes(&mut device), [0, 0, 7, 0, 0]);
    holder.join().unwrap();
}

#[test]
fn a_poisoned_lock_is_refused_with_its_place_and_kept() {
    let mut device = Shared::default();
    device.load_or_keep(&mut Reader::strict(SAVED), 1).unwrap();
    let other = device.clone();
    let panicked = std::thread::spawn(move || {
        let _guards = (other.mutex.lock(), other.lock.write());
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.join().is_err());
    let text = "the Mutex is poisoned: a thread panicked while it held it, so its value may be half changed";
    let error = vmstate::Wire::save(&mut device, &mut Writer::new()).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Rejected, format!("mutex: {text}")));
    let error = device.load_or_keep(&mut Reader::strict(&[0; 5]), 1).unwrap_err();
    assert_eq!(error.to_string(), format!("mutex at 0x2: {text}"));
    device.mutex.clear_poison();
    let error = device.load_or_keep(&mut Reader::strict(&[0; 5]), 1).unwrap_err();
    assert_eq!(error.to_string(), format!("lock at 0x3: {}", text.replace("Mutex", "RwLock")));
    device.lock.clear_poison();
    assert_eq!(bytes(&mut device), SAVED);
}

#[test]
fn a_borrowed_value_is_loaded_in_place() {
    #[derive(VmState)]
    #[vmstate(name = "view")]
    struct View<'a> {
        regs: &'a mut Regs,
        level: &'a mut u16,
    }

    let (mut regs, mut level) = (Regs { control: 1, host: 2 }, 3);
    let mut view = View { regs: &mut regs, level: &mut level };
    view.load_or_keep(&mut Reader::strict(&[9, 9]), 1).unwrap_err();
    assert_eq!(bytes(&mut view), [1, 0, 3]);
    view.load_or_keep(&mut Reader::strict(&[7, 0, 8]), 1).unwrap();
    assert_eq!((regs.control, regs.host, level), (7, 2, 8));
}
