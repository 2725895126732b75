//! `Option` as a subsection: its bytes, the value of an absent one, and the state after a failed load.

use vmstate::codec::{Reader, Writer};
use vmstate::raw::vmdesc;
use vmstate::{VmState, Wire};

#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "timer")]
struct Timer {
    count: u16,
    #[vmstate(skip)]
    host: u8,
}

#[derive(VmState, Default, Clone, Debug, PartialEq)]
#[vmstate(name = "dev", validate = Self::check)]
#[vmstate(subsection(name = "dev/timer", version = 2, minimum_version = 1))]
#[vmstate(subsection(name = "dev/level"))]
struct Dev {
    a: u8,
    #[vmstate(subsection = "dev/timer")]
    timer: Option<Timer>,
    #[vmstate(subsection = "dev/level")]
    level: Option<Box<u8>>,
}

impl Dev {
    fn check(&self) -> Result<(), &'static str> {
        if self.a == 9 { Err("a is 9") } else { Ok(()) }
    }
}

fn timer(count: u16, host: u8) -> Option<Timer> {
    Some(Timer { count, host })
}

const NONE: &[u8] = b"\x01";
const TIMER: &[u8] = b"\x01\x05\x09dev/timer\0\0\0\x02\x12\x34";
const BOTH: &[u8] = b"\x01\x05\x09dev/timer\0\0\0\x02\x12\x34\x05\x09dev/level\0\0\0\x01\x07";

fn states() -> [(Dev, &'static [u8]); 3] {
    [
        (Dev { a: 1, timer: None, level: None }, NONE),
        (Dev { a: 1, timer: timer(0x1234, 0), level: None }, TIMER),
        (Dev { a: 1, timer: timer(0x1234, 0), level: Some(Box::new(7)) }, BOTH),
    ]
}

/// A transparent struct of an `Option` behaves as the `Option`.
mod transparent {
    use super::*;

    #[derive(VmState, Default, Clone, Debug, PartialEq)]
    #[vmstate(transparent)]
    struct Late(Option<Timer>);

    #[derive(VmState, Default, Clone, Debug, PartialEq)]
    #[vmstate(transparent)]
    struct Pointer {
        to: Option<Box<u16>>,
    }

    #[derive(VmState, Default, Clone, Debug, PartialEq)]
    #[vmstate(transparent)]
    struct Boxed<T>(Box<T>);

    #[derive(VmState, Default, Clone, Debug, PartialEq)]
    #[vmstate(name = "dev", subsection(name = "dev/timer", version = 2, minimum_version = 1))]
    struct Dev {
        a: u8,
        pointers: [Pointer; 2],
        boxed: Option<Boxed<u8>>,
        #[vmstate(subsection = "dev/timer")]
        timer: Late,
    }

    fn dev(timer: Option<Timer>) -> Dev {
        let pointers = [Pointer { to: None }, Pointer { to: Some(Box::new(0x0102)) }];
        Dev { a: 1, pointers, boxed: Some(Boxed(Box::new(3))), timer: Late(timer) }
    }

    #[test]
    fn of_an_option_is_a_subsection_or_a_pointer() {
        let states: [(Dev, &[u8]); 2] = [
            (dev(None), b"\x01\x30\x01\x02\x03"),
            (dev(timer(5, 0)), b"\x01\x30\x01\x02\x03\x05\x09dev/timer\0\0\0\x02\0\x05"),
        ];
        for (mut state, bytes) in states.clone() {
            let mut out = Writer::recording();
            state.save(&mut out).unwrap();
            let (written, outcomes) = out.into_parts();
            assert_eq!(written, bytes);
            let described = vmdesc(Dev::DESCRIPTION, &outcomes).unwrap();
            assert_eq!(described.contains_key("subsections"), state.timer.0.is_some());
            for (mut before, _) in states.clone() {
                before.load_or_keep(&mut Reader::strict(bytes).complete(), 1).unwrap();
                assert_eq!(before, state);
                // A failed load leaves everything unchanged.
                let short = &bytes[..4];
                before.load_or_keep(&mut Reader::strict(short), 1).unwrap_err();
                assert_eq!(before, state);
            }
        }
    }
}

#[test]
fn some_is_a_subsection_and_none_is_nothing() {
    for (state, bytes) in states() {
        let mut out = Writer::new();
        state.clone().save(&mut out).unwrap();
        assert_eq!(out.into_bytes(), bytes);
        for (mut before, _) in states() {
            if let Some(timer) = &mut before.timer {
                timer.count = 5;
            }
            before.load_or_keep(&mut Reader::strict(bytes), 1).unwrap();
            assert_eq!(before, state, "what was there before does not matter");
        }
    }
}

#[test]
fn a_present_value_is_loaded_in_place() {
    let mut dev = Dev { a: 1, timer: timer(5, 77), level: None };
    dev.load_or_keep(&mut Reader::strict(TIMER), 1).unwrap();
    assert_eq!(dev.timer, timer(0x1234, 77));
}

#[test]
fn a_failed_load_puts_back_some_and_none() {
    for (mut dev, _) in states() {
        let before = dev.clone();
        for (_, bytes) in states() {
            let mut refused = bytes.to_vec();
            refused[0] = 9;
            let error = dev.load_or_keep(&mut Reader::strict(&refused), 1).unwrap_err();
            assert_eq!(error.message(), "validate: a is 9");
            assert_eq!(dev, before);
        }
    }
    let error = Dev::default().load_or_keep(&mut Reader::strict(&TIMER[..17]), 1).unwrap_err();
    assert_eq!(error.to_string(), "dev/timer › timer › count at 0x10: 2 bytes expected, 1 left");
}

#[test]
fn the_self_description_has_it_only_if_it_was_sent() {
    for ((mut state, _), sent) in states().into_iter().zip([0, 1, 2]) {
        let mut out = Writer::recording();
        state.save(&mut out).unwrap();
        let description = vmdesc(Dev::DESCRIPTION, &out.into_parts().1).unwrap();
        let subsections = description.get("subsections").and_then(|list| list.as_array()).map_or(0, Vec::len);
        assert_eq!(subsections, sent);
        if sent == 2 {
            let level = serde_json::json!({
                "vmsd_name": "dev/level", "version": 1, "fields": [{"name": "level", "type": "uint8", "size": 1}],
            });
            assert_eq!(description["subsections"][1], level);
        }
    }
}
