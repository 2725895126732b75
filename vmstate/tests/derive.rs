//! The derive, feature by feature: bytes written out, loads, failed loads.

use vmstate::codec::{Reader, Writer};
use vmstate::{Unused, VmState, Wire};

#[derive(VmState, Default, Debug, PartialEq, Clone)]
#[vmstate(name = "channel", version = 2)]
struct Channel {
    count: i32,
    latched: u8,
}

#[derive(VmState, Default, Debug, PartialEq, Clone)]
#[vmstate(name = "timer", version = 3, minimum_version = 2)]
#[vmstate(post_load = Self::thaw, validate = Self::check)]
#[vmstate(subsection(name = "timer/extra", version = 1, needed = Self::has_extra))]
struct Timer {
    enabled: bool,
    channels: [Channel; 2],
    #[vmstate(since = 3)]
    mode: u16,
    _pad: Unused<2>,
    n: u8,
    #[vmstate(len = n, max = 3)]
    list: Vec<u16>,
    #[vmstate(subsection = "timer/extra")]
    extra: u32,
    #[vmstate(skip)]
    host: String,
}

impl Timer {
    fn has_extra(&self) -> bool {
        self.extra != 0
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.mode == 0xffff { Err("mode 0xffff is reserved") } else { Ok(()) }
    }

    fn thaw(&mut self, version: u32) -> Result<(), String> {
        self.host = format!("loaded from {version}");
        Ok(())
    }
}

#[test]
fn round_trip() {
    let mut timer = Timer { enabled: true, mode: 0x0102, n: 2, list: vec![7, 8], extra: 9, ..Timer::default() };
    timer.channels[1].count = -1;
    let mut out = Writer::recording();
    timer.save(&mut out).unwrap();
    let (bytes, outcomes) = out.into_parts();
    let mut expected = vec![1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 1, 2, 0, 0, 2, 0, 7, 0, 8, 5, 11];
    expected.extend_from_slice(b"timer/extra\0\0\0\x01\0\0\0\x09");
    assert_eq!(bytes, expected);
    assert_eq!(outcomes, [2, 1]);

    let mut loaded = Timer::default();
    loaded.load_or_keep(&mut Reader::strict(&bytes), 3).unwrap();
    assert_eq!(loaded.host, "loaded from 3");
    loaded.host.clear();
    assert_eq!(loaded, timer);
}
