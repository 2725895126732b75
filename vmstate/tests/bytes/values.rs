//! Values that QEMU has no type for: wide integers, floats, characters, durations, deadlines; and unordered maps and sets.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmstate::codec::{Reader, Strictness, Writer};
use vmstate::state::{Deadline, GuestClock};
use vmstate::testing::bytes;
use vmstate::{ErrorKind, VmState};

#[derive(VmState, Default, Debug, PartialEq, Clone)]
#[vmstate(name = "values")]
struct Values {
    wide: u128,
    signed: i128,
    single: f32,
    character: char,
    pause: Duration,
    #[vmstate(wire = u32)]
    size: usize,
    #[vmstate(wire = i16)]
    offset: isize,
}

fn values() -> Values {
    Values {
        wide: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        signed: -2,
        single: 1.5,
        character: 'é',
        pause: Duration::new(1, 2),
        size: 7,
        offset: -8,
    }
}

const VALUES: &[u8] = b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\
    \xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\
    \x3f\xc0\0\0\
    \0\0\0\xe9\
    \0\0\0\0\x3b\x9a\xca\x02\
    \0\0\0\x07\
    \xff\xf8";

#[test]
fn each_value_has_its_bytes() {
    assert_eq!(bytes(&mut values()), VALUES);
    let mut loaded = Values::default();
    loaded.load_or_keep(&mut Reader::strict(VALUES), 1).unwrap();
    assert_eq!(loaded, values());
    for end in 0..VALUES.len() {
        // The wide integers with all bits inverted.
        let other: Vec<u8> =
            VALUES[..end].iter().enumerate().map(|(at, byte)| if at < 32 { !byte } else { *byte }).collect();
        let error = loaded.load_or_keep(&mut Reader::strict(&other), 1).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Incomplete), "{error}");
        assert_eq!(loaded, values());
    }
}

#[test]
fn the_bits_of_a_nan_are_kept() {
    let mut wire = VALUES.to_vec();
    wire[32..36].copy_from_slice(b"\x7f\xa0\x12\x34");
    let mut loaded = Values::default();
    loaded.load_or_keep(&mut Reader::strict(&wire), 1).unwrap();
    assert_eq!(bytes(&mut loaded), wire);
}

#[test]
fn a_number_that_is_no_character_is_refused() {
    for number in [0xd800_u32, 0xdfff, 0x11_0000, u32::MAX] {
        let mut wire = VALUES.to_vec();
        wire[36..40].copy_from_slice(&number.to_be_bytes());
        let mut device = values();
        let error = device.load_or_keep(&mut Reader::strict(&wire), 1).unwrap_err();
        assert_eq!(error.to_string(), format!("character at 0x24: {number:#x} is no Unicode scalar value"));
        assert_eq!((error.kind(), device), (ErrorKind::Malformed, values()));
    }
    for number in [0_u32, 0xd7ff, 0xe000, 0x10_ffff] {
        let mut wire = VALUES.to_vec();
        wire[36..40].copy_from_slice(&number.to_be_bytes());
        values().load_or_keep(&mut Reader::strict(&wire), 1).unwrap();
    }
}

#[test]
fn a_duration_that_does_not_fit_is_not_sent() {
    let mut device = Values { pause: Duration::from_nanos(u64::MAX), ..values() };
    assert_eq!(bytes(&mut device)[40..48], [0xff; 8]);
    device.pause += Duration::from_nanos(1);
    let error = vmstate::Wire::save(&mut device, &mut Writer::new()).unwrap_err();
    assert_eq!((error.kind(), error.path().as_str()), (ErrorKind::Rejected, "pause"));
}

/// The guest's clock shows 0 at the host time `.0`, and nothing above `.1`.
#[derive(Debug)]
struct Clock(Mutex<Instant>, Duration);

impl GuestClock for Clock {
    fn guest_time(&self, host: Instant) -> Option<Duration> {
        host.checked_duration_since(*self.0.lock().unwrap())
    }

    fn host_time(&self, guest: Duration) -> Option<Instant> {
        (guest <= self.1).then(|| *self.0.lock().unwrap() + guest)
    }
}

#[derive(VmState)]
#[vmstate(name = "watchdog")]
struct Watchdog {
    expiry: Deadline<Arc<Clock>>,
    count: u8,
}

#[test]
fn a_deadline_is_the_guests_time() {
    let start = Instant::now();
    let clock = |start| Arc::new(Clock(Mutex::new(start), Duration::from_secs(100)));
    let source = clock(start);
    let mut watchdog = Watchdog { expiry: Deadline::new(Arc::clone(&source)), count: 1 };
    assert_eq!(bytes(&mut watchdog), b"\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    watchdog.expiry.at = Some(start + Duration::from_nanos(0x1_0000));
    let saved = bytes(&mut watchdog);
    assert_eq!(saved, b"\0\0\0\0\0\x01\0\0\x01");

    // The destination's host has another clock.
    let there = start + Duration::from_secs(5);
    let mut moved = Watchdog { expiry: Deadline::new(clock(there)), count: 0 };
    moved.load_or_keep(&mut Reader::strict(&saved), 1).unwrap();
    assert_eq!(moved.expiry.at, Some(there + Duration::from_nanos(0x1_0000)));
    let kept = moved.expiry.at;
    moved.load_or_keep(&mut Reader::strict(&[0; 8]), 1).unwrap_err();
    assert_eq!(moved.expiry.at, kept);
    moved.load_or_keep(&mut Reader::strict(b"\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 1).unwrap();
    assert_eq!(moved.expiry.at, None);
}

#[test]
fn a_deadline_that_a_clock_never_shows_is_refused() {
    let start = Instant::now() + Duration::from_secs(10);
    let clock = Arc::new(Clock(Mutex::new(start), Duration::from_secs(1)));
    let mut watchdog = Watchdog { expiry: Deadline::new(clock), count: 1 };
    watchdog.expiry.at = Some(start - Duration::from_secs(1));
    let error = vmstate::Wire::save(&mut watchdog, &mut Writer::new()).unwrap_err();
    assert_eq!(error.to_string(), "expiry: the guest's clock never shows the time of this deadline");
    let error = watchdog.load_or_keep(&mut Reader::strict(b"\0\0\0\x01\0\0\0\0\x01"), 1).unwrap_err();
    assert_eq!((error.kind(), error.path().as_str(), error.offset()), (ErrorKind::Rejected, "expiry", Some(0)));
    assert_eq!(watchdog.expiry.at, Some(start - Duration::from_secs(1)));
}

#[derive(VmState, Default, Debug, PartialEq, Clone)]
#[vmstate(name = "maps")]
struct Maps {
    #[vmstate(map, max = 3)]
    map: HashMap<u16, u8>,
    #[vmstate(map, max = 3)]
    set: HashSet<i8>,
    #[vmstate(map, max = 3)]
    ordered: BTreeSet<u8>,
}

const MAPS: &[u8] = b"\0\0\0\x02\x01\0\x01\x0b\x01\x02\0\x0a\0\
    \0\0\0\x02\x01\xff\x01\x01\0\
    \0\0\0\x03\x01\x07\x01\x08\x01\x09\0";

fn maps() -> Maps {
    Maps { map: HashMap::from([(0x200, 10), (1, 11)]), set: HashSet::from([1, -1]), ordered: BTreeSet::from([9, 7, 8]) }
}

#[test]
fn maps_and_sets_are_in_the_order_of_their_keys() {
    // A `HashMap` has another order each time.
    for _ in 0..20 {
        assert_eq!(bytes(&mut maps()), MAPS);
    }
    let mut loaded = Maps::default();
    loaded.load_or_keep(&mut Reader::strict(MAPS), 1).unwrap();
    assert_eq!(loaded, maps());
    for end in 0..MAPS.len() {
        loaded.load_or_keep(&mut Reader::strict(&MAPS[..end]), 1).unwrap_err();
        assert_eq!(loaded, maps(), "cut at {end}");
    }
    loaded.load_or_keep(&mut Reader::strict(&[0; 15]), 1).unwrap();
    assert_eq!(loaded, Maps::default());
}

#[test]
fn a_hash_map_has_the_bytes_of_a_tree() {
    #[derive(VmState, Default)]
    #[vmstate(name = "maps")]
    struct Tree {
        #[vmstate(map, max = 3)]
        map: BTreeMap<u16, u8>,
    }
    let tree = bytes(&mut Tree { map: BTreeMap::from([(0x200, 10), (1, 11)]) });
    assert_eq!(tree, MAPS[..tree.len()]);
}

#[test]
fn keys_out_of_order_twice_or_too_many_are_refused() {
    let cases: [(&[u8], &str); 4] = [
        (b"\0\0\0\x02\x01\0\x02\x0b\x01\0\x01\x0a\0", "map[1] › key at 0x9: the keys are not in order"),
        (b"\0\0\0\x02\x01\0\x02\x0b\x01\0\x02\x0a\0", "map[1] › key at 0x9: the key comes twice"),
        (b"\0\0\0\0\0\0\0\0\x02\x01\x05\x01\x05\0", "set[1] › key at 0xc: the key comes twice"),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\x04", "ordered at 0xa: it has 4 entries, from 0 to 3 are allowed"),
    ];
    for (wire, text) in cases {
        let mut device = maps();
        assert_eq!(device.load_or_keep(&mut Reader::strict(wire), 1).unwrap_err().to_string(), text);
        assert_eq!(device, maps());
    }
    let twice = b"\0\0\0\x02\x01\0\x02\x0b\x01\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0";
    let mut input = Reader::new(twice, 0, Strictness::QemuCompatible, Default::default()).complete();
    let mut device = maps();
    device.load_or_keep(&mut input, 1).unwrap();
    assert_eq!(device.map, HashMap::from([(2, 10)]), "QEMU takes the last");
}

#[test]
fn a_present_value_is_loaded_in_place() {
    #[derive(VmState, Default, Debug, PartialEq)]
    #[vmstate(name = "entry")]
    struct Entry {
        sent: u8,
        #[vmstate(skip)]
        kept: u8,
    }
    #[derive(VmState, Default)]
    #[vmstate(name = "table")]
    struct Table {
        #[vmstate(map, max = 3)]
        map: HashMap<u8, Entry>,
    }
    let mut table = Table { map: HashMap::from([(1, Entry { sent: 2, kept: 3 }), (9, Entry::default())]) };
    table.load_or_keep(&mut Reader::strict(b"\0\0\0\x01\x01\x01\x05\0"), 1).unwrap();
    assert_eq!(table.map, HashMap::from([(1, Entry { sent: 5, kept: 3 })]));
    table.load_or_keep(&mut Reader::strict(b"\0\0\0\x01\x01\x01\x06"), 1).unwrap_err();
    assert_eq!(table.map, HashMap::from([(1, Entry { sent: 5, kept: 3 })]));
}
