//! The independent parser itself, tested with bytes written by hand from the format.

use vmstate_tests::stream_parser::{Page, Value, parse};

/// A stream with every element of the format; `description` is its self-description.
fn stream(device: &[u8], description: &str) -> Vec<u8> {
    let mut bytes = b"QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x07microvm".to_vec();
    bytes.extend(b"\x08\x00\x01\x00\x00\x08\x00\x02\x00\x04\x00\x00\x00\x01");
    // The start of section 2, ram: blocks of two pages and of one page.
    bytes.extend(b"\x01\x00\x00\x00\x02\x03ram\x00\x00\x00\x00\x00\x00\x00\x04");
    bytes.extend(
        b"\x00\x00\x00\x00\x00\x00\x30\x04\x01a\x00\x00\x00\x00\x00\x00\x20\x00\x01b\x00\x00\x00\x00\x00\x00\x10\x00",
    );
    bytes.extend(b"\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02");
    // A page of b, then both pages of a in one block, the second as a continuation.
    bytes.extend(b"\x02\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x08\x01b");
    bytes.extend([0xb; 4096]);
    bytes.extend(b"\x00\x00\x00\x00\x00\x00\x00\x02\x01a\x00\x00\x00\x00\x00\x00\x00\x10\x28");
    bytes.extend([0xa; 4096]);
    bytes.extend(b"\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02");
    bytes.extend(b"\x08\x00\x0b\x00\x00\x03\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x10\x7e\x00\x00\x00\x02");
    bytes.extend(b"\x04\x00\x00\x00\x07\x03dev\x00\x00\x00\x00\x00\x00\x00\x02");
    bytes.extend(device);
    bytes.extend(b"\x7e\x00\x00\x00\x07\x00\x06");
    bytes.extend(u32::try_from(description.len()).unwrap().to_be_bytes());
    bytes.extend(description.as_bytes());
    bytes
}

const DEVICE: &[u8] = b"\xff\xfe\x01\x00\x05\x00\x06\xff\x05\x05dev/s\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01\x00";

const DESCRIPTION: &str = r#"{"page_size": 4096, "devices": [{"name": "dev", "instance_id": 0, "vmsd_name": "dev", "version": 2,
 "fields": [{"name": "level", "type": "int16", "size": 2}, {"name": "on", "type": "bool", "size": 1},
  {"name": "unused", "type": "unused_buffer", "size": 1},
  {"name": "pair", "array_len": 2, "type": "struct", "struct": {"vmsd_name": "p", "version": 1,
   "fields": [{"name": "high", "type": "uint8", "size": 1}]}, "size": 1}],
 "subsections": [{"vmsd_name": "dev/s", "version": 1, "fields": [{"name": "at", "type": "timer", "size": 8}]}]}]}"#;

/// The struct in `DESCRIPTION` has one byte, so four bytes of `DEVICE` are two too many: see the test of errors.
const DEVICE_FITTING: &[u8] = b"\xff\xfe\x01\x00\x05\x06\x05\x05dev/s\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01\x00";

fn wrong(bytes: &[u8]) -> String {
    parse(bytes).unwrap_err().to_string()
}

#[test]
fn every_element_is_parsed() {
    let stream = parse(&stream(DEVICE_FITTING, DESCRIPTION)).unwrap();
    let commands: Vec<_> = stream.commands.iter().map(|command| (command.code, command.payload.as_slice())).collect();
    assert_eq!(commands, [(1, &[][..]), (2, &[0, 0, 0, 1]), (11, &[])]);
    let [a, b] = &stream.ram.blocks[..] else { panic!("{:?}", stream.ram.blocks) };
    assert_eq!((a.name.as_str(), a.length, a.normal, a.zero), ("a", 8192, 1, 1));
    assert_eq!((b.name.as_str(), b.length, b.normal, b.zero), ("b", 4096, 1, 0));
    assert_eq!(a.pages[&0], Page::Zero);
    assert!(matches!(&a.pages[&4096], Page::Normal(range) if range.len() == 4096));
    assert_eq!(stream.ram.parts, 2);
    let fields = &stream.device("dev", 0).unwrap().fields;
    assert_eq!(fields.value(&["level"]), Some(&Value::Signed(-2)));
    assert_eq!(fields.value(&["on"]), Some(&Value::Unsigned(1)));
    let Some(Value::Array(pair)) = fields.value(&["pair"]) else { panic!("{fields:?}") };
    let highs: Vec<_> =
        pair.iter().map(|one| if let Value::Struct(one) = one { one.value(&["high"]) } else { None }).collect();
    assert_eq!(highs, [Some(&Value::Unsigned(5)), Some(&Value::Unsigned(6))]);
    let subsection = fields.subsection("dev/s").unwrap();
    assert_eq!((subsection.version, subsection.fields.value(&["at"])), (1, Some(&Value::Unsigned(256))));
}

#[test]
fn errors_name_offset_and_expectation() {
    let good = stream(DEVICE_FITTING, DESCRIPTION);
    let at = |needle: &[u8]| good.windows(needle.len()).position(|window| window == needle).unwrap();
    let with = |position: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[position] = byte;
        wrong(&bytes)
    };
    assert_eq!(with(7, 2), "at 0x4: expected stream version 3, got 2");
    let device = at(DEVICE_FITTING);
    assert_eq!(with(device + 2, 2), format!("at {:#x}: expected 0 or 1 for on, got 2", device + 2));
    assert_eq!(with(device + 3, 2), format!("at {:#x}: expected zero bytes for unused, got [02]", device + 3));
    let footer = device + DEVICE_FITTING.len();
    assert_eq!(with(footer, 0x7f), format!("at {footer:#x}: expected footer of dev 126, got 127"));
    assert_eq!(with(footer + 4, 8), format!("at {:#x}: expected id in the footer of dev 7, got 8", footer + 1));
    assert_eq!(with(device - 1, 1), format!("at {device:#x}: expected version 2 as described, got 1"));
    let page = at(b"\x00\x00\x00\x00\x00\x00\x00\x08\x01b");
    assert_eq!(with(page + 6, 0x10), format!("at {page:#x}: expected an offset below 0x1000 in b, got 0x1000"));
    assert_eq!(with(page + 9, b'c'), format!("at {:#x}: expected the name of a block in the list, got 'c'", page + 8));
    assert_eq!(
        with(page + 7, 0x28),
        format!("at {page:#x}: expected a block name in the first record, got a record that continues")
    );
    assert!(wrong(&stream(DEVICE, DESCRIPTION)).contains("expected subsection mark 5, got 6"));
    let narrow = DESCRIPTION.replace(r#""int16", "size": 2"#, r#""int16", "size": 3"#);
    assert!(wrong(&stream(DEVICE_FITTING, &narrow)).contains("expected 2 bytes for level, a int16, got 3"));
    let other = DESCRIPTION.replace(r#""name": "dev""#, r#""name": "other""#);
    assert!(wrong(&stream(DEVICE_FITTING, &other)).contains("a section that the description lists once"));
}

#[test]
fn no_shorter_and_no_longer_stream_is_accepted() {
    let good = stream(DEVICE_FITTING, DESCRIPTION);
    for length in (0..good.len()).filter(|length| !(200..8000).contains(length)) {
        assert!(parse(&good[..length]).is_err(), "{length} of {} bytes", good.len());
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(parse(&longer).is_err());
}

/// A changed byte may give another valid value, but never a panic.
#[test]
fn damage_never_panics() {
    let good = stream(DEVICE_FITTING, DESCRIPTION);
    for position in (0..good.len()).filter(|position| !(200..8000).contains(position)) {
        for byte in [0, 0xff, good[position] ^ 1] {
            let mut bytes = good.clone();
            bytes[position] = byte;
            let _ = parse(&bytes);
        }
    }
}
