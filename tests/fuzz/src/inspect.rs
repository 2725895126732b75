//! Target: the inspector, which reads a stream without types: the input as a stream, and a stream built from a body and
//! a self-description, whose length would otherwise hardly ever be right. Sections without a self-description are read
//! by QEMU's dump.
//!
//! ```text
//! byte 0 is 0: stream | else: description of one section, `00`, its body
//! ```

use std::sync::LazyLock;

use vmstate::dump::{Dump, Part};
use vmstate::schema::json::Schema;

use crate::machine::Machine;
use crate::{Target, devices, streams};

pub(crate) const TARGET: Target = Target { name: "inspect", memory: 320 << 20, body, seeds };

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let text = include_str!("../../../vmstate/tests/fixtures/qemu-10.0-dump-vmstate.json");
    Schema::from_json(text).expect("QEMU's dump")
});

fn body(input: &[u8]) {
    let stream = match input {
        [0, stream @ ..] => stream.to_vec(),
        described => {
            let mut parts = described.splitn(2, |byte| *byte == 0);
            let (description, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            of_one_section(description, body)
        }
    };
    let dump = Dump::read_with(&stream, &SCHEMA);
    let mut before = 0;
    for section in dump.sections() {
        assert!(section.offset >= before, "sections that overlap");
        before = section.body + section.size;
        assert!(section.offset < section.body && before <= stream.len() as u64, "a section outside of the stream");
    }
    if let Some(offset) = dump.damage.as_ref().and_then(|damage| damage.offset()) {
        assert!(offset <= stream.len() as u64, "damage outside of the stream");
    }
    serde_json::to_value(&dump).expect("a dump is JSON");
}

fn of_one_section(description: &[u8], body: &[u8]) -> Vec<u8> {
    let text = [br#"{"devices":["#, description, b"]}"].concat();
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
    let (head, footer) =
        (b"QEVM\0\0\0\x03\x07\0\0\0\x01m\x04\0\0\0\x01\x01d\0\0\0\0\0\0\0\x01", b"\x7e\0\0\0\x01\0\x06");
    [head, body, footer, &length, &text].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let devices = devices::all();
    let known: Vec<&str> = devices.iter().map(|&(name, ..)| name).collect();
    let mut seeds = Vec::new();
    for stream in [streams::RESET, streams::KVM, streams::TCG] {
        seeds.push([&[0], streams::loadable(stream, &known).as_slice()].concat());
        let sections = streams::sections(stream);
        // After the last section: EOF, the mark of the self-description, its length.
        let end = sections.last().expect("sections").whole.end + 1;
        let text = end + 1 + 4;
        seeds.push([&[0], &streams::loadable(&stream[..end], &known)[..]].concat());
        let described: serde_json::Value = serde_json::from_slice(&stream[text..]).expect("a self-description");
        for found in sections.iter().filter(|found| found.part == Part::Full) {
            let of_it = |device: &&serde_json::Value| {
                device["name"] == *found.header.idstr && device["instance_id"] == found.header.instance
            };
            let Some(device) = described["devices"].as_array().and_then(|all| all.iter().find(of_it)) else { continue };
            let mut device = device.clone();
            (device["name"], device["instance_id"], device["version"]) = ("d".into(), 0.into(), 1.into());
            // The largest descriptions reach no code that others do not.
            let seed = [device.to_string().as_bytes(), &[0], &stream[found.body.clone()]].concat();
            seeds.extend(Some(seed).filter(|seed| seed.len() <= 2048));
        }
    }
    seeds.push([&[0], Machine::with(&[("ram", 2 << 12)]).save().as_slice()].concat());
    seeds
}
