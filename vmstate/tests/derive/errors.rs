//! Every error of a load or save of a described struct: kind, path, offset and text are part of the API. Each is a row of
//! docs/errors.md, and each case here begins with the text of its row.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::time::Duration;

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{ErrorKind, VmState};

const DOCS: &str = include_str!("../../../docs/errors.md");

/// The text of a row, with kind, path, offset and message of the error.
type Case = (&'static str, ErrorKind, &'static str, Option<u64>, &'static str);

#[track_caller]
fn assert_is(error: &vmstate::Error, (row, kind, path, offset, message): Case) {
    assert_eq!((error.kind(), error.path().as_str(), error.offset(), error.message()), (kind, path, offset, message));
    let place = match (path, offset) {
        ("", None) => String::new(),
        ("", Some(offset)) => format!("at {offset:#x}: "),
        (path, None) => format!("{path}: "),
        (path, Some(offset)) => format!("{path} at {offset:#x}: "),
    };
    assert_eq!(error.to_string(), format!("{place}{message}"));
    let row = format!("| {kind:?} | {row} |");
    assert!(DOCS.contains(&row), "docs/errors.md lacks {row}");
}

/// Loads `bytes` at `version` into `state`, which must fail and change nothing.
#[track_caller]
fn load<T: VmState>(mut state: T, bytes: &[u8], version: u32, case: Case) {
    let limits = Limits::new(64);
    let mut input = Reader::new(bytes, 0, Strictness::Strict, limits).complete();
    assert_is(&state.load_or_keep(&mut input, version).unwrap_err(), case);
}

#[track_caller]
fn save<T: VmState>(mut state: T, case: Case) {
    assert_is(&VmState::save_version(&mut state, &mut Writer::new(), T::DESCRIPTION.version).unwrap_err(), case);
}

macro_rules! dev {
    ($($body:tt)*) => {
        #[derive(VmState, Default)]
        #[vmstate(name = "dev", version = 3, minimum_version = 2)]
        struct Dev { $($body)* }
    };
}

use ErrorKind::{Incompatible, Incomplete, Malformed, Misuse, Rejected};

#[test]
fn bytes_and_versions() {
    dev! { a: u8, b: u32, }
    let end = ("`N bytes expected, M left`", Incomplete, "b", Some(1), "4 bytes expected, 2 left");
    load(Dev::default(), &[1, 2, 3], 3, end);
    let newer = ("`version V is newer than N`", Incompatible, "", Some(0), "version 4 is newer than 3");
    load(Dev::default(), &[0; 5], 4, newer);
    let message = "version 1 is older than 2, the oldest that loads";
    let older = ("`version V is older than N, the oldest that loads`", Incompatible, "", Some(0), message);
    load(Dev::default(), &[0; 5], 1, older);
    let error = Dev::default().save_version(&mut Writer::new(), 1).unwrap_err();
    let message = "cannot be saved at version 1, only at 2 to 3";
    assert_is(&error, ("`cannot be saved at version V, only at M to N`", Misuse, "", None, message));
}

#[test]
fn integers() {
    dev! { on: bool, }
    let case = ("`a bool is 0 or 1, got V`", Malformed, "on", Some(0), "a bool is 0 or 1, got 7");
    load(Dev::default(), &[7], 3, case);
    {
        #[derive(VmState)]
        #[vmstate(name = "dev")]
        struct Dev {
            n: NonZero<u16>,
        }
        let case = ("`0 is not allowed`", Malformed, "n", Some(0), "0 is not allowed");
        load(Dev { n: NonZero::new(1).unwrap() }, &[0, 0], 1, case);
    }
    {
        dev! { #[vmstate(wire = u16)] n: u8, }
        let case = ("`V does not fit T`", Malformed, "n", Some(0), "256 does not fit u8");
        load(Dev::default(), &[1, 0], 3, case);
    }
    {
        dev! { #[vmstate(wire = u8)] n: u16, }
        save(Dev { n: 300 }, ("`V does not fit T`", Rejected, "n", None, "300 does not fit u8"));
    }
    {
        dev! { a: u8, #[vmstate(equal)] n: u8, }
        let message = "the stream has 3, this machine has 4: configure both alike";
        let case =
            ("`the stream has V, this machine has W: configure both alike`", Incompatible, "n", Some(1), message);
        load(Dev { a: 0, n: 4 }, &[0, 3], 3, case);
    }
    {
        dev! { #[vmstate(at_most_current)] n: i32, }
        let message = "the stream has 5, this machine takes 0 to 4";
        let case = ("`the stream has V, this machine takes 0 to W`", Incompatible, "n", Some(0), message);
        load(Dev { n: 4 }, &[0, 0, 0, 5], 3, case);
    }
    {
        dev! { #[vmstate(range = 1..=4)] n: u8, }
        let message = "range: 9 is not in 1..=4";
        load(Dev { n: 1 }, &[9], 3, ("`range: V is not in R`", Rejected, "n", Some(1), message));
        save(Dev { n: 0 }, ("`range: V is not in R`", Rejected, "n", None, "range: 0 is not in 1..=4"));
    }
    {
        #[derive(VmState)]
        #[repr(u8)]
        enum Mode {
            Off = 0,
            On = 4,
        }
        #[derive(VmState)]
        #[vmstate(name = "dev")]
        struct Dev {
            modes: [Mode; 2],
        }
        let message = "3 is no Mode; known are 0 (Off), 4 (On)";
        let case = ("`V is no T; known are …`", Malformed, "modes[1]", Some(1), message);
        load(Dev { modes: [Mode::Off, Mode::On] }, &[4, 3], 1, case);
    }
}

#[test]
fn counts() {
    dev! { n: i8, #[vmstate(len = n, max = 8)] list: Vec<u16>, }
    const BOUND: &str = "`F is V, from 0 to N elements are allowed`";
    let message = "n is 9, from 0 to 8 elements are allowed";
    load(Dev::default(), &[9], 3, (BOUND, Malformed, "list", Some(1), message));
    let message = "n is -1, from 0 to 8 elements are allowed";
    load(Dev::default(), &[0xff], 3, (BOUND, Malformed, "list", Some(1), message));
    save(Dev { n: -1, list: vec![] }, (BOUND, Rejected, "list", None, message));
    let message = "its length field says 2, but it holds 1";
    let case = ("`its length field says N, but it holds M`", Rejected, "list", None, message);
    save(Dev { n: 2, list: vec![5] }, case);
    {
        dev! { n: u8, #[vmstate(len = n, max = 100)] list: Vec<u64>, }
        let message = "needs 80 bytes of memory, 64 are left of this section's limit";
        let case =
            ("`needs N bytes of memory, M are left of this section's limit`", Malformed, "list", Some(1), message);
        load(Dev::default(), &[10], 3, case);
    }
    {
        dev! { n: u8, #[vmstate(len = n, max = 100)] list: [u8; 2], }
        const ROOM: &str = "`its length field says N, it has room for M`";
        let message = "its length field says 3, it has room for 2";
        load(Dev::default(), &[3], 3, (ROOM, Malformed, "list", Some(1), message));
        save(Dev { n: 3, list: [0; 2] }, (ROOM, Rejected, "list", None, message));
    }
    {
        dev! { n: u8, #[vmstate(len = n * 2, max = 8)] list: Vec<u8>, }
        let message = "n is 5 times 2, from 0 to 8 elements are allowed";
        let case = ("`F is V times W, from 0 to N elements are allowed`", Malformed, "list", Some(1), message);
        load(Dev::default(), &[5], 3, case);
    }
}

#[test]
fn lists_maps_and_pointers() {
    dev! { #[vmstate(list, max = 2)] list: Vec<u8>, }
    let message = "1 comes before an element and 0 behind the last, got 9";
    let case = ("`1 comes before an element and 0 behind the last, got V`", Malformed, "list", Some(2), message);
    load(Dev::default(), &[1, 5, 9], 3, case);
    let message = "more than 2 elements";
    let bytes = [1, 5, 1, 6, 1, 7, 0];
    load(Dev::default(), &bytes, 3, ("`more than N elements`", Malformed, "list", Some(5), message));
    let message = "it holds 3, from 0 to 2 elements are allowed";
    let case = ("`it holds M, from 0 to N elements are allowed`", Rejected, "list", None, message);
    save(Dev { list: vec![1, 2, 3] }, case);
    {
        dev! { #[vmstate(map, max = 2)] map: BTreeMap<u64, u8>, }
        let message = "it has 3 entries, from 0 to 2 are allowed";
        let case = ("`it has M entries, from 0 to N are allowed`", Malformed, "map", Some(0), message);
        load(Dev::default(), &[0, 0, 0, 3], 3, case);
        let message = "ends after 0 of 1 entries";
        let case = ("`ends after M of N entries`", Malformed, "map", Some(5), message);
        load(Dev::default(), &[0, 0, 0, 1, 0], 3, case);
        let message = "the key comes twice";
        let entry = |key: u8| [1, 0, 0, 0, 0, 0, 0, 0, key, 9];
        let bytes = [&[0, 0, 0, 2][..], &entry(4), &entry(4)].concat();
        load(Dev::default(), &bytes, 3, ("`the key comes twice`", Malformed, "map[1] › key", Some(15), message));
        let message = "the keys are not in order";
        let bytes = [&[0, 0, 0, 2][..], &entry(4), &entry(3)].concat();
        load(Dev::default(), &bytes, 3, ("`the keys are not in order`", Malformed, "map[1] › key", Some(15), message));
        let message = "more than the 0 announced entries";
        let case = ("`more than the N announced entries`", Malformed, "map", Some(5), message);
        load(Dev::default(), &[0, 0, 0, 0, 1], 3, case);
    }
    {
        dev! { next: Option<Box<u16>>, }
        let message = "null on this machine, but the stream has 0x31: configure both alike";
        let row = "`null on this machine, but the stream has V: configure both alike`";
        load(Dev::default(), &[0x31], 3, (row, Incompatible, "next", Some(0), message));
    }
}

/// Values below 8 only.
#[derive(Clone, Default)]
struct Line(u8);

impl From<&Line> for u8 {
    fn from(line: &Line) -> u8 {
        line.0
    }
}

impl TryFrom<u8> for Line {
    type Error = String;

    fn try_from(wire: u8) -> Result<Self, String> {
        if wire < 8 { Ok(Self(wire)) } else { Err(format!("there is no line {wire}")) }
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "around")]
struct Around {
    a: u8,
    #[vmstate(tmp = Tmp)]
    tmp: (),
}

#[derive(VmState)]
#[vmstate(name = "tmp")]
struct Tmp {
    b: u8,
}

impl From<&Around> for Tmp {
    fn from(_: &Around) -> Self {
        Self { b: 0 }
    }
}

impl vmstate::Temporary<Around> for Tmp {
    fn apply(self, _: &mut Around) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.b == 0 { Ok(()) } else { Err("not for us".into()) }
    }
}

#[test]
fn representations() {
    dev! { a: u8, #[vmstate(via = u8)] line: Line, }
    let message = "via: there is no line 9";
    load(Dev::default(), &[1, 9], 3, ("`via: …`", Rejected, "line", Some(1), message));
    let message = "tmp: not for us";
    load(Around::default(), &[1, 9], 1, ("`tmp: …`", Rejected, "tmp", Some(1), message));
    {
        dev! { n: u8, #[vmstate(bitmap, len = n, max = 64)] bits: Vec<u64>, }
        let message = "0x8 has bits set beyond the 3 of this bitmap";
        let case = ("`V has bits set beyond the N of this bitmap`", Malformed, "bits[0]", Some(1), message);
        load(Dev::default(), &[3, 0, 0, 0, 0, 0, 0, 0, 8], 3, case);
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "sub", version = 1, pre_load = Self::pre, validate = Self::all, post_load = Self::post, pre_save = Self::pre)]
#[vmstate(subsection(name = "sub/x", version = 2))]
struct Hooked {
    #[vmstate(must_exist = Self::is_there, validate = Self::one)]
    a: u8,
    #[vmstate(subsection = "sub/x")]
    x: u8,
    #[vmstate(skip)]
    fails: &'static str,
}

impl Hooked {
    fn verdict(&self, hook: &str) -> Result<(), &'static str> {
        if self.fails == hook { Err("no") } else { Ok(()) }
    }

    fn pre(&mut self) -> Result<(), &'static str> {
        self.verdict("pre")
    }

    fn all(&self) -> Result<(), &'static str> {
        self.verdict("all")
    }

    fn one(&self) -> Result<(), &'static str> {
        self.verdict("one")
    }

    fn post(&mut self, _: u32) -> Result<(), &'static str> {
        self.verdict("post")
    }

    fn is_there(&self, _: u32) -> bool {
        self.fails != "there"
    }
}

#[test]
fn hooks_and_subsections() {
    let hooked = |fails| Hooked { fails, ..Hooked::default() };
    load(hooked("pre"), &[1], 1, ("`pre_load: …`", Rejected, "", Some(0), "pre_load: no"));
    let message = "must_exist: Self::is_there is false";
    load(hooked("there"), &[1], 1, ("`must_exist: P is false`", Rejected, "a", Some(0), message));
    load(hooked("one"), &[1], 1, ("`validate: …`", Rejected, "a", Some(1), "validate: no"));
    load(hooked("all"), &[1], 1, ("`validate: …`", Rejected, "", Some(1), "validate: no"));
    load(hooked("post"), &[1], 1, ("`post_load: …`", Rejected, "", Some(1), "post_load: no"));
    save(hooked("pre"), ("`pre_save: …`", Rejected, "", None, "pre_save: no"));
    let x = b"\x01\x05\x05sub/x\0\0\0\x02\x07";
    let message = "subsection \"sub/y\" is not known to \"sub\"";
    let case = ("`subsection S is not known to P`", Incompatible, "", Some(1), message);
    load(hooked(""), b"\x01\x05\x05sub/y\0\0\0\x02\x07", 1, case);
    let twice = [x, &x[1..]].concat();
    let message = "subsection \"sub/x\" comes twice";
    load(hooked(""), &twice, 1, ("`subsection S comes twice`", Malformed, "", Some(13), message));
    let message = "version 3 is newer than 2";
    let case = ("`version V is newer than N`", Incompatible, "sub/x", Some(12), message);
    load(hooked(""), b"\x01\x05\x05sub/x\0\0\0\x03\x07", 1, case);
    let message = "1 bytes expected, 0 left";
    let case = ("`N bytes expected, M left`", Incomplete, "sub/x › x", Some(12), message);
    load(hooked(""), b"\x01\x05\x05sub/x\0\0\0\x02", 1, case);
}

#[test]
fn counted_collections_and_values_that_qemu_has_no_type_for() {
    #[derive(VmState, Default)]
    #[vmstate(name = "dev")]
    struct Dev {
        #[vmstate(counted = u8, max = 2)]
        text: String,
        letter: char,
        pause: Duration,
    }
    let message = "it has 3 elements, from 0 to 2 are allowed";
    load(
        Dev::default(),
        &[3],
        1,
        ("`it has M elements, from 0 to N are allowed`", Malformed, "text", Some(0), message),
    );
    let message = "these bytes are not UTF-8";
    load(Dev::default(), &[1, 0xff], 1, ("`these bytes are not UTF-8`", Malformed, "text", Some(1), message));
    let message = "0xd800 is no Unicode scalar value";
    let case = ("`V is no Unicode scalar value`", Malformed, "letter", Some(1), message);
    load(Dev::default(), &[0, 0, 0, 0xd8, 0], 1, case);
    let message = "it holds 3, from 0 to 2 elements are allowed";
    let case = ("`it holds M, from 0 to N elements are allowed`", Rejected, "text", None, message);
    save(Dev { text: "abc".into(), ..Dev::default() }, case);
    let message = "18446744073.709551616s does not fit 64 bits of ns";
    let case = ("`V does not fit 64 bits of ns`", Rejected, "pause", None, message);
    save(Dev { pause: Duration::from_nanos(u64::MAX) + Duration::from_nanos(1), ..Dev::default() }, case);
}

#[test]
fn cells_and_locks() {
    let held = "the RefCell is held by a guard that was never dropped";
    #[derive(VmState)]
    #[vmstate(name = "dev")]
    struct Dev {
        cell: RefCell<u8>,
        lock: Mutex<u8>,
    }
    let row = "`the L is held by a guard that was never dropped`";
    let dev = || {
        let dev = Dev { cell: RefCell::new(1), lock: Mutex::new(2) };
        std::mem::forget(dev.cell.borrow_mut());
        dev
    };
    load(dev(), &[1, 2], 1, (row, Misuse, "cell", Some(0), held));
    save(dev(), (row, Misuse, "cell", None, held));
    let message = "the Mutex is poisoned: a thread panicked while it held it, so its value may be half changed";
    let row = "`the L is poisoned: a thread panicked while it held it, so its value may be half changed`";
    let poisoned = std::sync::Arc::new(Mutex::new(2));
    let other = std::sync::Arc::clone(&poisoned);
    let panicked = std::thread::spawn(move || {
        let _guard = other.lock();
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.join().is_err());
    let lock = std::sync::Arc::into_inner(poisoned).unwrap();
    load(Dev { cell: RefCell::new(1), lock }, &[1, 2], 1, (row, Rejected, "lock", Some(1), message));
}
