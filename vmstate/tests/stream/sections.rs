//! The registry: each section finds its device, in whatever order the sections arrive.

use vmstate::codec::Reader;
use vmstate::section::Sections;
use vmstate::{ErrorKind, Section, VmState};

#[derive(VmState, Default)]
#[vmstate(name = "device")]
struct Device {
    value: u8,
}

/// Name, instance, and the value that is sent to it.
const SENT: [(&str, u32, u8); 4] = [("pic", 0, 1), ("pic", 1, 2), ("pit", 0, 3), ("serial", 0, 4)];

/// Loads the sections at these indices in `SENT`; returns the value of each device.
fn load(places: [usize; 4], begin: fn(&mut Sections<'_>)) -> [u8; 4] {
    let mut devices: [Device; 4] = Default::default();
    let mut sections = Sections::new();
    for (device, (name, instance, _)) in devices.iter_mut().zip(SENT) {
        sections.register(name, instance, device as &mut dyn Section).unwrap();
    }
    begin(&mut sections);
    for (name, instance, value) in places.map(|place| SENT[place]) {
        sections.load(name, instance, 1, &mut Reader::strict(&[value])).unwrap();
    }
    drop(sections);
    devices.map(|device| device.value)
}

#[test]
fn each_order_gives_each_device_its_own() {
    for code in 0..256 {
        let mut places = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6];
        let order = places;
        places.sort();
        if places == [0, 1, 2, 3] {
            assert_eq!(load(order, |_| {}), [1, 2, 3, 4], "{order:?}");
            assert_eq!(load(order, |sections| sections.begin_load()), [1, 2, 3, 4], "{order:?}");
        }
    }
}

#[test]
fn the_first_that_matches_an_instance_gets_it() {
    // Whenever its instance ids are declared.
    let begins: [fn(&mut Sections<'_>); 3] = [
        let_the_first_answer_to_1,
        |sections| {
            let_the_first_answer_to_1(sections);
            sections.begin_load();
        },
        |sections| {
            sections.begin_load();
            let_the_first_answer_to_1(sections);
        },
    ];
    for begin in begins {
        let mut devices: [Device; 2] = Default::default();
        let [first, second] = &mut devices;
        let mut sections = Sections::new();
        sections.register("pic", 0, first as &mut dyn Section).unwrap();
        sections.register("pic", 1, second as &mut dyn Section).unwrap();
        begin(&mut sections);
        sections.load("pic", 0, 1, &mut Reader::strict(&[1])).unwrap();
        let twice = sections.load("pic", 1, 1, &mut Reader::strict(&[2])).unwrap_err();
        assert_eq!((twice.kind(), twice.message()), (ErrorKind::Malformed, "came twice"));
    }
}

fn let_the_first_answer_to_1(sections: &mut Sections<'_>) {
    sections.in_order()[0].alias(1);
}
