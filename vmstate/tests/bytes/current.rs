//! Integers that are compared with the device's current value, and ranges: their bytes, and which values are refused.

use vmstate::codec::{Reader, Writer};
use vmstate::raw::vmdesc;
use vmstate::{ErrorKind, VmState, Wire};

#[derive(VmState, Clone, Debug, PartialEq)]
#[vmstate(name = "config")]
struct Config {
    #[vmstate(equal)]
    queues: u16,
    #[vmstate(equal)]
    features: u64,
    #[vmstate(at_most_current)]
    used: i32,
    #[vmstate(range = 1..=8)]
    width: u8,
    #[vmstate(range = -5.., wire = i8)]
    shift: i32,
}

const CONFIG: Config = Config { queues: 0x102, features: 3, used: 0x10, width: 8, shift: -5 };
const BYTES: [u8; 16] = *b"\x01\x02\0\0\0\0\0\0\0\x03\0\0\0\x10\x08\xfb";

fn load(change: impl FnOnce(&mut [u8; 16])) -> vmstate::Result<Config> {
    let (mut config, mut bytes) = (CONFIG, BYTES);
    change(&mut bytes);
    let loaded = config.load_or_keep(&mut Reader::strict(&bytes), 1);
    assert!(loaded.is_ok() || config == CONFIG, "a refused load keeps all");
    loaded.map(|()| config)
}

#[test]
fn the_bytes_are_those_of_the_integers() {
    let mut out = Writer::recording();
    CONFIG.clone().save(&mut out).unwrap();
    let (bytes, outcomes) = out.into_parts();
    assert_eq!(bytes, BYTES);
    assert_eq!(load(|_| ()).unwrap(), CONFIG);
    // QEMU's names for these types, one of them unexpected (migration/vmstate-types.c).
    let expected = serde_json::json!([
        {"name": "queues", "type": "uint16 equal", "size": 2},
        {"name": "features", "type": "int64 equal", "size": 8},
        {"name": "used", "type": "int32 le", "size": 4},
        {"name": "width", "type": "uint8", "size": 1},
        {"name": "shift", "type": "int8", "size": 1},
    ]);
    assert_eq!(vmdesc(Config::DESCRIPTION, &outcomes).unwrap()["fields"], expected);
}

#[test]
fn equal_refuses_any_other_value() {
    let error = load(|bytes| bytes[1] = 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(error.to_string(), "queues at 0x0: the stream has 259, this machine has 258: configure both alike");
    let error = load(|bytes| bytes[9] = 2).unwrap_err();
    assert_eq!(error.to_string(), "features at 0x2: the stream has 2, this machine has 3: configure both alike");
}

/// QEMU's `VMSTATE_INT32_POSITIVE_LE`: accepts 0 up to the current value, and replaces it.
#[test]
fn at_most_current_takes_0_to_the_current_value() {
    assert_eq!(load(|bytes| bytes[13] = 0).unwrap().used, 0);
    assert_eq!(load(|bytes| bytes[13] = 0xf).unwrap().used, 0xf);
    let error = load(|bytes| bytes[13] = 0x11).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(error.to_string(), "used at 0xa: the stream has 17, this machine takes 0 to 16");
    let error = load(|bytes| bytes[10..14].fill(0xff)).unwrap_err();
    assert_eq!(error.to_string(), "used at 0xa: the stream has -1, this machine takes 0 to 16");
}

#[derive(VmState, Default)]
#[vmstate(name = "grown", version = 2, minimum_version = 1)]
struct Grown {
    #[vmstate(since = 2, range = 1..)]
    width: u8,
}

#[test]
fn range_is_checked_for_the_current_value() {
    Grown::default().load_or_keep(&mut Reader::strict(&[]), 1).unwrap();
    assert!(Grown::default().load_or_keep(&mut Reader::strict(&[0]), 2).is_err());
}

#[test]
fn range_is_checked_on_load_and_on_save() {
    assert_eq!(load(|bytes| bytes[14] = 1).unwrap().width, 1);
    for width in [0, 9] {
        let error = load(|bytes| bytes[14] = width).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert_eq!(error.to_string(), format!("width at 0xf: range: {width} is not in 1..=8"));
    }
    let error = load(|bytes| bytes[15] = 0xfa).unwrap_err();
    assert_eq!(error.to_string(), "shift at 0x10: range: -6 is not in -5..");
    let error = Config { width: 9, ..CONFIG }.save(&mut Writer::new()).unwrap_err();
    assert_eq!(error.to_string(), "width: range: 9 is not in 1..=8");
}
