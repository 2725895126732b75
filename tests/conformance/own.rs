//! A stream that `vmstate` writes, read by the independent parser: bytes, description and memory must agree.

use std::io;
use std::time::Duration;

use serde_json::json;
use vmstate::channel::Channel;
use vmstate::dump::Dump;
use vmstate::error::Result;
use vmstate::migrate::snapshot;
use vmstate::ram::{GuestRam, PAGE_SIZE, RamBlock};
use vmstate::section::{Section, Sections};
use vmstate::{Unused, VmState};
use vmstate_tests::stream_parser::{Page, Value, parse};

#[derive(Default, VmState)]
#[vmstate(name = "inner", version = 1, minimum_version = 1)]
struct Inner {
    high: u8,
    wide: i32,
}

/// A device with one field of each kind.
#[derive(Default, VmState)]
#[vmstate(name = "dev", version = 2, minimum_version = 1)]
#[vmstate(subsection(name = "dev/more", version = 3, needed = Self::has_more))]
struct Dev {
    on: bool,
    level: i16,
    unused: Unused<3>,
    regs: [u16; 3],
    inner: Inner,
    pair: [Inner; 2],
    count: u8,
    #[vmstate(len = count, max = 8)]
    list: Vec<u32>,
    #[vmstate(subsection = "dev/more")]
    more: u64,
}

impl Dev {
    fn has_more(&self) -> bool {
        self.more != 0
    }
}

/// Memory in which each page is filled with one byte value.
struct Memory {
    blocks: Vec<RamBlock>,
    fills: Vec<Vec<u8>>,
}

impl Memory {
    fn new(blocks: &[(&str, &[u8])]) -> Self {
        Self {
            blocks: blocks
                .iter()
                .map(|(name, fills)| RamBlock { name: (*name).into(), len: fills.len() as u64 * PAGE_SIZE })
                .collect(),
            fills: blocks.iter().map(|(_, fills)| fills.to_vec()).collect(),
        }
    }
}

impl GuestRam for Memory {
    fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    fn read(&self, block: usize, offset: u64, into: &mut [u8]) -> Result<()> {
        for (byte, offset) in into.iter_mut().zip(offset..) {
            *byte = self.fills[block][(offset / PAGE_SIZE) as usize];
        }
        Ok(())
    }

    fn write(&self, _block: usize, _offset: u64, _from: &[u8]) -> Result<()> {
        unreachable!("nothing is loaded here")
    }

    fn zero_page(&self, _block: usize, _offset: u64) -> Result<()> {
        unreachable!("nothing is loaded here")
    }
}

/// A channel that records the bytes sent.
#[derive(Default)]
struct Record(Vec<u8>);

impl Channel for Record {
    fn send(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn receive(&mut self, _into: &mut [u8], _timeout: Duration) -> io::Result<usize> {
        Ok(0)
    }
}

#[test]
fn a_snapshot_has_the_content_of_the_machine() {
    let inner = |high, wide| Inner { high, wide };
    let mut full = Dev {
        on: true,
        level: -5,
        regs: [1, 2, 0xffff],
        inner: inner(9, i32::MIN),
        pair: [inner(1, -1), inner(2, 7)],
        count: 2,
        list: vec![0xdead_beef, 1],
        more: 1 << 63,
        ..Dev::default()
    };
    let mut bare = Dev::default();
    let memory = Memory::new(&[("ram", &[0, 7, 0, 0xff]), ("rom", &[1])]);
    let mut sections = Sections::new();
    sections.register("board/dev", 0, &mut full as &mut dyn Section).unwrap();
    sections.register("dev", 1, &mut bare as &mut dyn Section).unwrap();
    let mut record = Record::default();
    snapshot::save(&mut record, "testvm", &mut sections, &memory).unwrap();
    let stream = parse(&record.0).unwrap_or_else(|error| panic!("{error}"));

    assert_eq!(stream.configuration.machine, "testvm");
    let [ram, rom] = &stream.ram.blocks[..] else { panic!("{:?}", stream.ram.blocks) };
    assert_eq!((ram.name.as_str(), ram.length, ram.normal, ram.zero), ("ram", 4 * PAGE_SIZE, 2, 2));
    assert_eq!((rom.name.as_str(), rom.length, rom.normal, rom.zero), ("rom", PAGE_SIZE, 1, 0));
    for (block, fills) in [(ram, &[0, 7, 0, 0xff][..]), (rom, &[1])] {
        for (page, &fill) in fills.iter().enumerate() {
            let bytes = match &block.pages[&(page as u64 * PAGE_SIZE)] {
                Page::Zero => vec![0; PAGE_SIZE as usize],
                Page::Normal(range) => record.0[range.clone()].to_vec(),
            };
            assert!(bytes.iter().all(|&byte| byte == fill), "page {page} of {}", block.name);
        }
    }

    let device = stream.device("board/dev", 0).unwrap();
    assert_eq!(device.version, 2);
    let value = |path: &[&str]| device.fields.value(path).cloned();
    assert_eq!(value(&["on"]), Some(Value::Unsigned(1)));
    assert_eq!(value(&["level"]), Some(Value::Signed(-5)));
    assert_eq!(value(&["regs"]), Some(Value::Array([1, 2, 0xffff].map(Value::Unsigned).into())));
    assert_eq!(value(&["inner", "wide"]), Some(Value::Signed(i32::MIN.into())));
    assert_eq!(value(&["list"]), Some(Value::Array([0xdead_beef, 1].map(Value::Unsigned).into())));
    let Some(Value::Array(pair)) = value(&["pair"]) else { panic!("{device:?}") };
    let wides = pair.iter().map(|one| if let Value::Struct(one) = one { one.value(&["wide"]).cloned() } else { None });
    assert!(wides.eq([Some(Value::Signed(-1)), Some(Value::Signed(7))]));
    let more = device.fields.subsection("dev/more").unwrap();
    assert_eq!((more.version, more.fields.value(&["more"])), (3, Some(&Value::Unsigned(1 << 63))));
    assert!(stream.device("dev", 1).unwrap().fields.subsections.is_empty());

    let dump = Dump::read(&record.0);
    assert!(dump.damage.is_none(), "{:?}", dump.damage);
    let fields =
        serde_json::to_value(dump.sections().find(|section| section.header.idstr == "board/dev")).unwrap()["fields"]
            .take();
    let expected = json!({
        "on": true, "level": -5, "unused": "000000", "regs": [1, 2, 0xffff], "inner": {"high": 9, "wide": i32::MIN},
        "pair": [{"high": 1, "wide": -1}, {"high": 2, "wide": 7}], "count": 2, "list": [0xdead_beef_u32, 1],
        "dev/more": {"version": 3, "fields": {"more": 1_u64 << 63}},
    });
    assert_eq!(fields, expected);
    let pages = serde_json::to_value(&dump).unwrap()["ram"].take();
    assert_eq!(pages[0], json!({"name": "ram", "length": 16384, "address": null, "normal": 2, "zero": 2}));
}
