//! Migration back to an older release: a machine saved for an older release sends, byte for byte, what that release itself would
//! send; state that cannot be represented there is refused before anything is sent.

use std::sync::{Arc, Mutex};

use crate::toy::{NoRam, load, saved};
use vmstate::codec::{Reader, Strictness, Writer};
use vmstate::error::{ErrorKind, Result};
use vmstate::schema::Description;
use vmstate::schema::json::Schema;
use vmstate::section::{Section, Sections};
use vmstate::{Unused, VmState};

/// The release that the other hosts run.
mod old {
    use vmstate::VmState;

    #[derive(VmState, Default, Debug, PartialEq)]
    #[vmstate(name = "uart", version = 2, minimum_version = 1)]
    #[vmstate(subsection(name = "uart/timeout", needed = Self::waits))]
    pub(super) struct Uart {
        pub(super) divider: u16,
        pub(super) baud: u32,
        #[vmstate(since = 2)]
        pub(super) fifo: u8,
        #[vmstate(exists = Self::is_first)]
        pub(super) legacy: u8,
        #[vmstate(subsection = "uart/timeout")]
        pub(super) timeout_ns: u64,
    }

    impl Uart {
        fn waits(&self) -> bool {
            self.timeout_ns != 0
        }

        fn is_first(&self, version: u32) -> bool {
            version < 2
        }
    }

    #[derive(VmState, Default, Debug, PartialEq)]
    #[vmstate(name = "pic")]
    pub(super) struct Pic {
        pub(super) level: u8,
    }
}

/// Today's UART, under another name: two more versions and a subsection, padding instead of a field, fields in a nested struct.
#[derive(VmState, Default)]
#[vmstate(name = "uart", version = 4, minimum_version = 1)]
#[vmstate(subsection(name = "uart/timeout", version = 3, minimum_version = 1, needed = Self::waits))]
#[vmstate(subsection(name = "uart/sending"))]
struct Uart {
    rate: Rate,
    #[vmstate(since = 2)]
    fifo: u8,
    #[vmstate(exists = Self::is_first)]
    legacy: u8,
    #[vmstate(since = 3)]
    trigger: u32,
    #[vmstate(since = 4)]
    _gap: Unused<3>,
    #[vmstate(subsection = "uart/timeout")]
    timeout_ns: u64,
    #[vmstate(subsection = "uart/timeout", since = 2)]
    timeout_kind: u8,
    #[vmstate(subsection = "uart/sending")]
    sending: Option<u8>,
}

#[derive(VmState, Default)]
#[vmstate(name = "rate")]
struct Rate {
    divider: u16,
    baud: u32,
}

impl Uart {
    fn waits(&self) -> bool {
        self.timeout_ns != 0
    }

    fn is_first(&self, version: u32) -> bool {
        version < 2
    }
}

fn today(timeout_ns: u64) -> Uart {
    let rate = Rate { divider: 12, baud: 9600 };
    Uart { rate, fifo: 7, trigger: 9, timeout_ns, timeout_kind: 5, ..Uart::default() }
}

fn of_old<'a>(uart: &'a mut old::Uart, pic: &'a mut old::Pic) -> Sections<'a> {
    let mut sections = Sections::new();
    sections.add(uart as &mut dyn Section).unwrap();
    sections.add(pic as &mut dyn Section).unwrap();
    sections
}

/// The schema that the release wrote.
fn release() -> Schema {
    let schema = of_old(&mut old::Uart::default(), &mut old::Pic::default()).schema(Some("toy")).unwrap();
    Schema::from_json(&schema.to_json()).unwrap()
}

fn with_alias<'a>(uart: impl Section + 'a, pic: impl Section + 'a) -> Sections<'a> {
    let mut sections = Sections::new();
    sections.register("serial", 0, uart).unwrap();
    sections.add(pic).unwrap();
    sections.add_alias("serial", "uart").unwrap();
    sections
}

/// The stream up to its self-description.
fn stream(bytes: &[u8]) -> &[u8] {
    let text = bytes.windows(2).rposition(|window| window == b"\0\x06").unwrap();
    &bytes[..=text]
}

#[test]
fn what_is_sent_is_what_the_older_release_sends() {
    for timeout_ns in [0, 0x0102] {
        let mut then = old::Uart { divider: 12, baud: 9600, fifo: 7, timeout_ns, ..old::Uart::default() };
        let mut pic = old::Pic { level: 3 };
        let expected = saved(&mut of_old(&mut then, &mut pic)).unwrap();
        let mut sections = with_alias(today(timeout_ns), old::Pic { level: 3 });
        sections.save_for(Some(release()));
        let sent = saved(&mut sections).unwrap();
        assert_eq!(stream(&sent).escape_ascii().to_string(), stream(&expected).escape_ascii().to_string());
        let mut there = (old::Uart::default(), old::Pic::default());
        load(&sent, Strictness::Strict, &mut of_old(&mut there.0, &mut there.1)).unwrap();
        assert_eq!(there, (then, pic));
        // A reader without the types finds what was sent, and no more.
        let dump = vmstate::dump::Dump::read(&sent);
        let versions: Vec<_> =
            dump.sections().filter(|section| section.fields.is_some()).map(|section| section.header.version).collect();
        assert_eq!(versions, [2, 1]);
    }
}

/// Checks that saving for the release is refused with these reasons, and that nothing was written.
#[track_caller]
fn refused(sections: &mut Sections<'_>, release: Schema, reasons: &[&str]) {
    sections.save_for(Some(release));
    let error = saved(sections).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let text = format!("the release for which it is saved cannot have this machine: {}", reasons.join("; "));
    assert_eq!(error.to_string(), text);
}

/// Nothing is written before the refusal.
#[test]
fn all_reasons_are_reported_at_once_and_nothing_is_written() {
    #[derive(VmState, Default)]
    #[vmstate(name = "rtc")]
    struct Rtc {
        seconds: u64,
    }
    let mut sections = Sections::new();
    sections.register("serial", 0, Uart { sending: Some(b'x'), ..today(1) }).unwrap();
    sections.add_alias("serial", "uart").unwrap();
    sections.add(Rtc::default()).unwrap();
    let reasons = [
        "serial/0: subsection \"uart/sending\" is needed now and not known there",
        "rtc/0: this section is not known there: leave the device out of machines that go there",
        "pic: a load there is refused without this section, and this machine does not send it",
    ];
    refused(&mut sections, release(), &reasons);
    let mut file = Untouched;
    let error = vmstate::migrate::snapshot::save(&mut file, "toy", &mut sections, &NoRam).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
}

/// A file that must not be written.
struct Untouched;

impl vmstate::channel::Channel for Untouched {
    fn send(&mut self, _: &[u8], _: std::time::Duration) -> std::io::Result<usize> {
        panic!("something is sent")
    }

    fn receive(&mut self, _: &mut [u8], _: std::time::Duration) -> std::io::Result<usize> {
        unreachable!("nothing is received")
    }
}

#[test]
fn a_section_that_is_not_needed_is_not_missed() {
    #[derive(VmState, Default)]
    #[vmstate(name = "plug", needed = Self::is_used)]
    struct Plug {
        used: bool,
    }
    impl Plug {
        fn is_used(&self) -> bool {
            self.used
        }
    }
    for (used, taken) in [(false, true), (true, false)] {
        let mut sections = with_alias(today(0), old::Pic::default());
        sections.add(Plug { used }).unwrap();
        sections.save_for(Some(release()));
        assert_eq!(saved(&mut sections).is_ok(), taken);
    }
}

#[test]
fn versions_that_one_side_lacks_are_refused() {
    #[derive(VmState, Default)]
    #[vmstate(name = "pic", version = 3, minimum_version = 2)]
    struct Pic {
        level: u8,
    }
    let reason = "pic/0: its version there is 1, the oldest that this release can write is 2";
    refused(&mut with_alias(today(0), Pic::default()), release(), &[reason]);

    // The other way round: the release is newer and has dropped the version that this one writes.
    let mut newer = Schema::new(None);
    newer.add("pic", Pic::DESCRIPTION).unwrap();
    let mut sections = Sections::new();
    sections.add(old::Pic::default()).unwrap();
    refused(&mut sections, newer, &["pic/0: its newest version is 1, the oldest that loads there is 2"]);

    #[derive(VmState, Default)]
    #[vmstate(name = "uart", version = 2, minimum_version = 1)]
    #[vmstate(subsection(name = "uart/timeout", version = 4, minimum_version = 2))]
    struct Narrow {
        rate: Rate,
        #[vmstate(since = 2)]
        fifo: u8,
        #[vmstate(subsection = "uart/timeout")]
        timeout_ns: u64,
    }
    let mut sections = Sections::new();
    sections.add(Narrow::default()).unwrap();
    sections.add(old::Pic::default()).unwrap();
    let reason =
        "uart/0: subsection \"uart/timeout\" is needed now: this release writes versions 2 to 4, there 1 to 1 load";
    refused(&mut sections, release(), &[reason]);
}

/// Its version indicates that it loads, its bytes do not.
#[test]
fn another_layout_is_refused() {
    #[derive(VmState, Default)]
    #[vmstate(name = "pic", version = 1)]
    struct Pic {
        level: u16,
    }
    let mut sections = with_alias(today(0), Pic::default());
    sections.save_for(Some(release()));
    let error = saved(&mut sections).unwrap_err().to_string();
    assert!(error.contains("pic/0: at version 1 it breaks there at level because "), "{error}");
}

/// A hand-written section, which supports one version only.
struct HandWritten(u8);

static HAND_WRITTEN: Description = Description::new(
    vmstate::schema::MaybeStatic::Static("pic"),
    2,
    1,
    vmstate::schema::MaybeStatic::Static(&[]),
    vmstate::schema::MaybeStatic::Static(&[]),
);

impl Section for HandWritten {
    fn description(&self) -> &'static Description {
        &HAND_WRITTEN
    }

    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u8(self.0);
        Ok(())
    }

    fn load(&mut self, input: &mut Reader<'_>, _version: u32) -> Result<()> {
        self.0 = input.u8()?;
        Ok(())
    }
}

#[test]
fn a_hand_written_section_supports_its_newest_version_only() {
    let mut sections = with_alias(today(0), HandWritten(1));
    sections.save_for(Some(release()));
    let error = saved(&mut sections).unwrap_err().to_string();
    assert!(error.contains("pic/0: cannot be saved at version 1"), "{error}");
}

/// In a live migration, a device may begin to need a subsection after the first check.
#[test]
fn what_becomes_needed_later_is_refused_before_any_device_is_sent() {
    #[derive(VmState, Default)]
    #[vmstate(name = "pic", pre_save = Self::count, subsection(name = "pic/late", needed = Self::is_late))]
    struct Pic {
        level: u8,
        #[vmstate(subsection = "pic/late")]
        saves: u8,
    }
    impl Pic {
        fn count(&mut self) -> Result<(), &'static str> {
            self.saves += 1;
            Ok(())
        }

        fn is_late(&self) -> bool {
            self.saves > 1
        }
    }
    let reason = "pic/0: subsection \"pic/late\" is needed now and not known there";
    refused(&mut with_alias(today(0), Pic::default()), release(), &[reason]);
}

#[test]
fn devices_that_threads_share_are_saved_for_it_too() {
    let uart: Arc<Mutex<dyn Section + Send>> = Arc::new(Mutex::new(today(0)));
    let mut sections = with_alias(uart, old::Pic::default());
    sections.save_for(Some(release()));
    let (mut uart, mut pic) = (old::Uart::default(), old::Pic::default());
    load(&saved(&mut sections).unwrap(), Strictness::Strict, &mut of_old(&mut uart, &mut pic)).unwrap();
    assert_eq!((uart.divider, uart.fifo), (12, 7));
}

/// The layout is that of the release, but a load there would refuse the value: each such value is refused here, with its field.
#[test]
fn a_value_that_the_release_does_not_take_is_refused() {
    mod then {
        use vmstate::VmState;

        #[derive(VmState, Default, Clone, Copy)]
        #[repr(u8)]
        pub(super) enum Phase {
            #[default]
            Idle = 0,
            Busy = 1,
        }

        #[derive(VmState, Default)]
        #[repr(u8)]
        pub(super) enum Request {
            #[default]
            None = 0,
            Read {
                sector: u64,
            } = 1,
        }

        #[derive(VmState, Default)]
        #[vmstate(name = "lane")]
        pub(super) struct Lane {
            pub(super) phase: Phase,
            pub(super) request: Request,
        }

        #[derive(VmState, Default)]
        #[vmstate(name = "disk", subsection(name = "disk/speed"))]
        pub(super) struct Disk {
            #[vmstate(range = 0..=7)]
            pub(super) level: i16,
            pub(super) gap: [u16; 5],
            pub(super) count: u8,
            #[vmstate(len = count, max = 4)]
            pub(super) lanes: Vec<Lane>,
            #[vmstate(list, max = 2)]
            pub(super) errors: Vec<u8>,
            pub(super) on: bool,
            #[vmstate(subsection = "disk/speed")]
            pub(super) speed: Option<Phase>,
        }
    }

    #[derive(VmState, Default, Clone, Copy)]
    #[repr(u8)]
    enum Phase {
        #[default]
        Idle = 0,
        Busy = 1,
        Draining = 4,
    }

    #[derive(VmState, Default)]
    #[repr(u8)]
    enum Request {
        #[default]
        None = 0,
        Read {
            sector: u64,
        } = 1,
        Discard {
            sector: u64,
            count: u32,
        } = 3,
    }

    #[derive(VmState, Default)]
    #[vmstate(name = "lane")]
    struct Lane {
        phase: Phase,
        request: Request,
    }

    #[derive(VmState, Default)]
    #[vmstate(name = "disk", subsection(name = "disk/speed"))]
    struct Disk {
        #[vmstate(range = -1..=8)]
        level: i16,
        gap: [u16; 5],
        count: u8,
        #[vmstate(len = count, max = 6)]
        lanes: Vec<Lane>,
        #[vmstate(list, max = 3)]
        errors: Vec<u8>,
        on: u8,
        #[vmstate(subsection = "disk/speed")]
        speed: Option<Phase>,
    }

    fn lanes(lanes: Vec<Lane>) -> Disk {
        Disk { count: lanes.len().try_into().unwrap(), lanes, ..Disk::default() }
    }
    let busy = || Lane { phase: Phase::Busy, request: Request::Read { sector: 7 } };
    let draining = Lane { phase: Phase::Draining, ..busy() };
    let discarding = Lane { request: Request::Discard { sector: 1, count: 2 }, ..busy() };
    let refused = [
        (Disk { level: -1, ..Disk::default() }, "level: -1 is not accepted there, only 0 to 7"),
        (lanes(vec![busy(), draining]), "lanes[1] › phase: 4 is not known there, only 0, 1"),
        (lanes(vec![discarding]), "lanes[0] › request › tag: 3 is not known there, only 0, 1"),
        (lanes((0..5).map(|_| busy()).collect()), "lanes: it has 5 elements, there at most 4 are accepted"),
        (Disk { errors: vec![1, 2, 3], ..Disk::default() }, "errors: it has 3 elements, there at most 2 are accepted"),
        (Disk { on: 2, ..Disk::default() }, "on: 2 is not accepted there"),
        (
            Disk { speed: Some(Phase::Draining), ..Disk::default() },
            "disk/speed › speed: 4 is not known there, only 0, 1",
        ),
    ];
    let mut schema = Schema::new(None);
    schema.add("disk", then::Disk::DESCRIPTION).unwrap();
    for (mut disk, reason) in refused {
        // The oracle: the release itself refuses these bytes.
        let bytes = vmstate::testing::bytes(&mut disk);
        then::Disk::default().load_or_keep(&mut Reader::strict(&bytes), 1).unwrap_err();
        let mut sections = Sections::new();
        sections.add(disk).unwrap();
        self::refused(&mut sections, schema.clone(), &[&format!("disk/0 › {reason}")]);
    }

    let mut disk = Disk { level: 7, errors: vec![255], on: 1, speed: Some(Phase::Busy), ..lanes(vec![busy(), busy()]) };
    let bytes = vmstate::testing::bytes(&mut disk);
    let mut there = then::Disk::default();
    there.load_or_keep(&mut Reader::strict(&bytes), 1).unwrap();
    let mut sections = Sections::new();
    sections.add(disk).unwrap();
    sections.save_for(Some(schema));
    saved(&mut sections).unwrap();
}
