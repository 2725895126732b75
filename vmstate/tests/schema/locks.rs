//! Locks: a device changes, correctly and not, and the whole message of each typical mistake.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tempfile::TempDir;
use vmstate::section::Sections;
use vmstate::testing::{Lock, Lockable};
use vmstate::{Unused, VmState};

/// The device in its first release.
mod first {
    use vmstate::VmState;

    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1)]
    pub(super) struct Uart {
        pub(super) divider: u16,
        pub(super) ier: u8,
        pub(super) lcr: u8,
    }
}

const FIRST: first::Uart = first::Uart { divider: 12, ier: 5, lcr: 3 };

/// A folder called `uart`, in which the first release is locked.
struct Kept(TempDir);

impl Kept {
    fn new() -> Self {
        let kept = Self(tempfile::tempdir().unwrap());
        kept.lock().state("busy", || FIRST).bless(true).check();
        assert_eq!(kept.files(), ["1/busy.bin", "1/schema.json"]);
        kept
    }

    fn folder(&self) -> std::path::PathBuf {
        self.0.path().join("uart")
    }

    fn lock<'a>(&self) -> Lock<'a> {
        Lock::new(self.folder()).bless(false)
    }

    fn files(&self) -> Vec<String> {
        let names = |folder: &Path| -> BTreeSet<String> {
            let listed = std::fs::read_dir(folder).unwrap();
            listed.map(|item| item.unwrap().file_name().into_string().unwrap()).collect()
        };
        let entries = names(&self.folder());
        let inside =
            |entry: String| names(&self.folder().join(&entry)).into_iter().map(move |name| format!("{entry}/{name}"));
        entries.into_iter().flat_map(inside).collect()
    }

    /// The message of the lock on a device, blessed or not.
    fn message(&self, lock: Lock<'_>) -> String {
        let panic = catch_unwind(AssertUnwindSafe(|| lock.check())).expect_err("the lock does not hold");
        let message = panic.downcast_ref::<String>().unwrap();
        let head = format!("the lock on {} does not hold\n\n", self.folder().display());
        message.strip_prefix(&head).unwrap_or_else(|| panic!("{message}")).to_owned()
    }

    /// Checks that both runs print the same message, and that blessing changes nothing.
    #[track_caller]
    fn refuses<'a, S: Lockable<'a>>(&self, make: impl Fn() -> S + Copy + 'a, expected: &str) {
        let files = self.files();
        assert_eq!(self.message(self.lock().state("busy", make)), expected);
        assert_eq!(self.message(self.lock().state("busy", make).bless(true)), expected);
        assert_eq!(self.files(), files);
    }
}

#[test]
fn an_entry_is_a_stream_and_a_schema() {
    let kept = Kept::new();
    kept.lock().state("busy", || FIRST).check();
    let stream = std::fs::read(kept.folder().join("1/busy.bin")).unwrap();
    // FULL, number 2, name, instance 0, version 1, the four bytes, footer.
    let section = b"\x04\0\0\0\x02\x04uart\0\0\0\0\0\0\0\x01\x00\x0c\x05\x03\x7e\0\0\0\x02";
    assert!(stream.windows(section.len()).any(|window| window == section));
    let schema = std::fs::read_to_string(kept.folder().join("1/schema.json")).unwrap();
    let schema = vmstate::schema::json::Schema::from_json(&schema).unwrap();
    assert_eq!(schema.section("uart"), Some(first::Uart::DESCRIPTION));
}

#[test]
fn a_field_appended_under_the_same_version() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1)]
    struct Uart {
        divider: u16,
        ier: u8,
        lcr: u8,
        fifo_control: u8,
    }
    Kept::new().refuses(
        || Uart { divider: 12, ier: 5, lcr: 3, fifo_control: 1 },
        "\
1/schema.json: streams of this layout do not load any more
uart
  old -> new, version 1: breaks at fifo_control because the stream does not have it -> put the new field into a \
subsection, or raise the version and give it since = that version
  new -> old, version 1: breaks at fifo_control because the reader does not have it -> put the new field into a \
subsection that is sent only when needed
Do what is said behind \"->\". If nobody has such streams, because this was never released or is dropped on purpose, \
delete 1 and run again with BLESS=1.

",
    );
}

#[test]
fn a_field_removed() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 2, minimum_version = 1)]
    struct Uart {
        divider: u16,
        ier: u8,
    }
    Kept::new().refuses(
        || Uart { divider: 12, ier: 5 },
        "\
1/schema.json: streams of this layout do not load any more
uart
  old -> new, version 1: breaks at lcr because the reader does not have it -> go on reading the field, or put \
Unused of its size in its place
  new -> old, version 2: breaks at uart because version 2 is newer than 1 -> do not raise the version: put what is new \
into a subsection that is sent only when needed
Do what is said behind \"->\". If nobody has such streams, because this was never released or is dropped on purpose, \
delete 1 and run again with BLESS=1.

",
    );
}

#[test]
fn two_fields_of_one_type_change_places() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1)]
    struct Uart {
        divider: u16,
        lcr: u8,
        ier: u8,
    }
    Kept::new().refuses(
        || Uart { divider: 12, ier: 5, lcr: 3 },
        "\
1/busy.bin: `busy` is sent as other bytes now
  uart/0 › ier, byte 2 of the section: 0x05 then, 0x03 now
The layout is the same, so such a stream loads, but its values mean something else: put order and meaning back, or \
raise the version and read the old one as it was meant. If only the example was changed, delete 1/busy.bin and run \
again with BLESS=1.

",
    );
}

#[test]
fn a_check_that_refuses_what_was_sent() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1)]
    struct Uart {
        #[vmstate(validate = Self::check)]
        divider: u16,
        ier: u8,
        lcr: u8,
    }
    impl Uart {
        fn check(&self) -> Result<(), &'static str> {
            if self.divider == 12 { Err("9600 baud is too slow") } else { Ok(()) }
        }
    }
    // The kept stream of `busy` is loaded into `reset`, the only remaining example.
    let kept = Kept::new();
    let lock = || kept.lock().state("reset", || Uart { divider: 1, ier: 0, lcr: 0 });
    let message = kept.message(lock());
    let expected = "\
1/busy.bin: does not load any more, into `reset`: uart/0 › divider at 0x";
    assert!(message.starts_with(expected), "{message}");
    let rest = ": validate: 9600 baud is too slow
By its layout it would: a check or a hook refuses it, or it lacks what is required now. Take what was sent then.\n\n";
    assert!(message.ends_with(rest), "{message}");
    assert_eq!(kept.message(lock().bless(true)), message);
}

#[test]
fn a_new_version_is_kept_on_purpose_only() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 2, minimum_version = 1)]
    struct Uart {
        divider: u16,
        ier: u8,
        lcr: u8,
        #[vmstate(since = 2)]
        fifo_control: u8,
    }
    let kept = Kept::new();
    let lock = || kept.lock().state("busy", || Uart { divider: 12, ier: 5, lcr: 3, fifo_control: 1 });
    assert_eq!(
        kept.message(lock()),
        "\
the layout is not that of 1 any more; all that was sent before loads
uart
  old -> new, version 1: loads
  new -> old, version 2: breaks at uart because version 2 is newer than 1 -> do not raise the version: put what is new \
into a subsection that is sent only when needed
If this is what you want, run again with BLESS=1, and commit 2/schema.json, 2/busy.bin.
"
    );
    assert_eq!(kept.files(), ["1/busy.bin", "1/schema.json"]);
    lock().bless(true).check();
    assert_eq!(kept.files(), ["1/busy.bin", "1/schema.json", "2/busy.bin", "2/schema.json"]);
    lock().check();
    // Another example belongs to the same entry.
    let more = || lock().state("idle", || Uart { divider: 1, ier: 0, lcr: 0, fifo_control: 0 });
    let says = "an example is new\nIf this is what you want, run again with BLESS=1, and commit 2/idle.bin.\n";
    assert_eq!(kept.message(more()), says);
    more().bless(true).check();
    more().check();
}

#[test]
fn an_old_version_is_dropped_on_purpose_only() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 2)]
    struct Uart {
        divider: u16,
        ier: u8,
        lcr: u8,
    }
    let kept = Kept::new();
    let new = || Uart { divider: 12, ier: 5, lcr: 3 };
    let expected = "\
1/schema.json: streams of this layout do not load any more
uart
  old -> new, version 1: breaks at uart because version 1 is older than 2, the oldest that loads -> keep \
minimum_version as it was while such streams may come
  new -> old, version 2: breaks at uart because version 2 is newer than 1 -> do not raise the version: put what is new \
into a subsection that is sent only when needed
Do what is said behind \"->\". If nobody has such streams, because this was never released or is dropped on purpose, \
delete 1 and run again with BLESS=1.

";
    kept.refuses(new, expected);
    std::fs::remove_dir_all(kept.folder().join("1")).unwrap();
    kept.lock().state("busy", new).bless(true).check();
    kept.lock().state("busy", new).check();
}

#[test]
fn a_condition_has_to_be_assumed_by_name() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1)]
    struct Uart {
        divider: u16,
        ier: u8,
        #[vmstate(exists = Self::has_lcr)]
        lcr: u8,
    }
    impl Uart {
        fn has_lcr(&self, _version: u32) -> bool {
            true
        }
    }
    let kept = Kept::new();
    let lock = || kept.lock().state("busy", || Uart { divider: 12, ier: 5, lcr: 3 });
    let message = kept.message(lock());
    let (_, assumption) = message.split_once("; assume \"").unwrap();
    let (assumption, _) = assumption.split_once("\"`").unwrap();
    assert!(assumption.contains("has_lcr") && assumption.ends_with(" is true"), "{message}");
    lock().assume(assumption).bless(true).check();
    lock().assume(assumption).check();
}

#[test]
fn names_of_fields_and_of_structs_inside_are_free() {
    #[derive(VmState)]
    #[vmstate(name = "lines", version = 7)]
    struct Lines {
        interrupts: u8,
        line: u8,
    }
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1)]
    struct Serial {
        baud: u16,
        lines: Lines,
    }
    let kept = Kept::new();
    kept.lock().state("busy", || Serial { baud: 12, lines: Lines { interrupts: 5, line: 3 } }).check();
}

/// The name of a section is on the wire, whatever the folder's name.
#[test]
fn a_renamed_section_needs_its_older_name() {
    #[derive(VmState)]
    #[vmstate(name = "serial", version = 1)]
    struct Serial {
        divider: u16,
        ier: u8,
        lcr: u8,
    }
    let serial = || Serial { divider: 12, ier: 5, lcr: 3 };
    let kept = Kept::new();
    let message = kept.message(kept.lock().state("busy", serial).bless(true));
    let expected = "1/schema.json: streams of this layout do not load any more
uart
  old -> new, version 1: breaks at uart because the reader does not have this section -> ";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(kept.files(), ["1/busy.bin", "1/schema.json"]);
    let renamed = || {
        let mut sections = Sections::new();
        sections.add(serial()).unwrap();
        sections.add_alias("serial", "uart").unwrap();
        sections
    };
    kept.lock().state("busy", renamed).bless(true).check();
    kept.lock().state("busy", renamed).check();
    assert_eq!(kept.files(), ["1/busy.bin", "1/schema.json", "2/busy.bin", "2/schema.json"]);
    // The alias may be removed only together with the streams that need it.
    let message = kept.message(kept.lock().state("busy", serial));
    assert!(message.starts_with(expected), "{message}");
}

/// The order of a hash map, the time, and a save that changes the device: no such example is kept.
#[test]
fn an_example_that_is_not_the_same_each_time_is_refused() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1, pre_save = Self::count)]
    struct Uart {
        saves: u8,
        now: u32,
        length: u8,
        #[vmstate(len = length, max = 8)]
        lines: Vec<u32>,
        #[vmstate(skip)]
        counts: bool,
    }
    impl Uart {
        fn count(&mut self) -> Result<(), &'static str> {
            self.saves += u8::from(self.counts);
            Ok(())
        }
    }
    let fixed = || Uart { saves: 0, now: 7, length: 2, lines: vec![1, 2], counts: false };
    let hashed = move || {
        let lines: HashMap<u32, ()> = [(0x0102_0304, ()), (0x0506_0708, ())].into();
        Uart { lines: lines.into_keys().collect(), ..fixed() }
    };
    let timed = move || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        Uart { now, ..fixed() }
    };
    let kept = Kept(tempfile::tempdir().unwrap());
    let refused = |make: &dyn Fn() -> Uart, place: &str| {
        for bless in [false, true] {
            let message = kept.message(kept.lock().state("fixed", fixed).state("busy", make).bless(bless));
            let begins = format!("`busy` is sent as other bytes each time\n  uart/0 › {place}");
            assert!(message.starts_with(&begins), "{message}");
            assert!(message.contains(" at first, 0x") && message.contains(" when saved again\n"), "{message}");
        }
        assert!(!kept.folder().exists());
    };
    refused(&hashed, "lines, byte 6 of the section: ");
    refused(&timed, "now, byte ");
    refused(&move || Uart { counts: true, ..fixed() }, "saves, byte 0 of the section: 0x01 at first, 0x02 when");
    kept.lock().state("fixed", fixed).bless(true).check();
}

#[test]
fn padding_in_place_of_a_field_is_kept_with_its_warning() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 1)]
    struct Uart {
        divider: u16,
        _ier: Unused<1>,
        lcr: u8,
    }
    let kept = Kept::new();
    let lock = || kept.lock().state("busy", || Uart { divider: 12, _ier: Unused, lcr: 3 });
    let message = kept.message(lock());
    assert!(message.contains("warning: ier (u8) is skipped: the reader has padding there\n"), "{message}");
    lock().bless(true).check();
    assert_eq!(kept.files(), ["1/busy.bin", "1/schema.json", "2/busy.bin", "2/schema.json"]);
}

/// A condition of several versions is listed once.
#[test]
fn a_condition_of_two_versions_is_named_once() {
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 2, minimum_version = 1)]
    struct Wide {
        #[vmstate(range = 0..=3)]
        mode: u8,
    }
    #[derive(VmState)]
    #[vmstate(name = "uart", version = 2, minimum_version = 1)]
    struct Narrow {
        #[vmstate(range = 0..=2)]
        mode: u8,
    }
    let kept = Kept(tempfile::tempdir().unwrap());
    kept.lock().state("busy", || Wide { mode: 1 }).bless(true).check();
    let message = kept.message(kept.lock().state("busy", || Narrow { mode: 1 }));
    assert_eq!(message.matches("loads if mode is not 3").count(), 2, "{message}");
    assert_eq!(message.matches("; assume \"mode is not 3\"").count(), 1, "{message}");
}

/// A whole machine: a new section is required, which no earlier stream has.
#[test]
fn a_required_section_is_new() {
    let machine = |names: &'static [&str]| {
        move || {
            let mut sections = Sections::new();
            for name in names {
                sections.register(name, 0, FIRST).unwrap();
            }
            sections
        }
    };
    let kept = Kept(tempfile::tempdir().unwrap());
    kept.lock().state("busy", machine(&["com1"])).bless(true).check();
    let message = kept.message(kept.lock().state("busy", machine(&["com1", "com2"])));
    let expected = "1/schema.json: streams of this layout do not load any more
com2
  old -> new, version 1: breaks at com2 because the reader requires this section -> register it as optional";
    assert!(message.starts_with(expected), "{message}");
}

/// The macro's folder is relative to this package; its contents were written by the first release of vmstate with locks.
#[test]
fn the_macros_folder_is_relative_to_the_caller() {
    vmstate::lock!("tests/fixtures/locks/uart", busy: FIRST);
}

#[test]
fn a_first_lock_has_advice() {
    let kept = Kept(tempfile::tempdir().unwrap());
    let expected = "nothing is kept yet\nIf this is what you want, run again with BLESS=1, and commit 1/schema.json, \
                    1/busy.bin.\n";
    assert_eq!(kept.message(kept.lock().state("busy", || FIRST)), expected);
}

#[test]
fn a_kept_file_that_is_broken_is_named() {
    let kept = Kept::new();
    let schema = kept.folder().join("1/schema.json");
    std::fs::write(&schema, "{").unwrap();
    let message = kept.message(kept.lock().state("busy", || FIRST));
    assert!(message.starts_with(&format!("{}: the schema is no JSON", schema.display())), "{message}");
}
