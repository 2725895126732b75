//! Hooks and checks of a derived device: when they run, which fields they see, and how their errors are reported.

use vmstate::codec::{Reader, Writer};
use vmstate::{Error, ErrorKind, VmState, Wire};

/// A device that records every call, and fails the selected one.
#[derive(VmState, Default, Debug)]
#[vmstate(name = "dev", version = 2, minimum_version = 1)]
#[vmstate(pre_save = Self::pre_save, post_save = Self::post_save, pre_load = Self::pre_load)]
#[vmstate(post_load = Self::post_load, validate = Self::validate)]
#[vmstate(subsection(
    name = "dev/x",
    version = 4,
    needed = Self::needed,
    pre_save = Self::x_pre_save,
    post_save = Self::x_post_save,
    pre_load = Self::x_pre_load,
    post_load = Self::x_post_load,
    validate = Self::x_validate
))]
struct Dev {
    #[vmstate(validate = Self::validate_a)]
    a: u8,
    inner: Inner,
    #[vmstate(must_exist = Self::b_must, exists = Self::b_exists)]
    b: u8,
    #[vmstate(subsection = "dev/x")]
    x: u8,
    #[vmstate(skip)]
    calls: std::cell::RefCell<Vec<String>>,
    #[vmstate(skip)]
    fail: &'static str,
}

#[derive(VmState, Default, Debug)]
#[vmstate(name = "inner", version = 9, post_load = Self::post_load)]
struct Inner {
    y: u8,
    #[vmstate(skip)]
    loaded: u32,
}

impl Inner {
    fn post_load(&mut self, version: u32) -> Result<(), &'static str> {
        self.loaded = version;
        if self.y == 0xff { Err("y is 0xff") } else { Ok(()) }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("bad weather")]
struct Weather(#[source] Rain);

#[derive(Debug, thiserror::Error)]
#[error("it rains")]
struct Rain;

impl Dev {
    fn call(&self, name: &'static str, sees: impl std::fmt::Debug) -> Result<(), Weather> {
        self.calls.borrow_mut().push(format!("{name} {sees:?}"));
        if self.fail == name { Err(Weather(Rain)) } else { Ok(()) }
    }

    fn pre_save(&mut self) -> Result<(), Weather> {
        self.call("pre_save", ())
    }

    fn post_save(&mut self) {
        self.call("post_save", ()).unwrap();
    }

    fn pre_load(&mut self) -> Result<(), Weather> {
        self.call("pre_load", self.a)
    }

    fn post_load(&mut self, version: u32) -> Result<(), Weather> {
        self.call("post_load", (version, self.x, self.inner.loaded))
    }

    fn validate(&self) -> Result<(), Weather> {
        self.call("validate", (self.b, self.x))
    }

    fn validate_a(&self) -> Result<(), Weather> {
        self.call("validate_a", (self.a, self.inner.y))
    }

    fn b_must(&self, version: u32) -> bool {
        self.call("b_must", (version, self.inner.y, self.b)).is_ok()
    }

    fn b_exists(&self, version: u32) -> bool {
        self.call("b_exists", version).is_ok()
    }

    fn needed(&self) -> bool {
        self.call("needed", self.x).is_ok()
    }

    fn x_pre_save(&mut self) -> Result<(), Weather> {
        self.call("x_pre_save", ())
    }

    fn x_post_save(&mut self) {
        self.call("x_post_save", ()).unwrap();
    }

    fn x_pre_load(&mut self) -> Result<(), Weather> {
        self.call("x_pre_load", self.x)
    }

    fn x_post_load(&mut self, version: u32) -> Result<(), Weather> {
        self.call("x_post_load", (version, self.x))
    }

    fn x_validate(&self) -> Result<(), Weather> {
        self.call("x_validate", self.x)
    }

    fn failing(fail: &'static str) -> Self {
        Self { fail, ..Self::default() }
    }
}

const BYTES: &[u8] = b"\x01\x02\x03\x05\x05dev/x\0\0\0\x04\x06";

fn save(dev: &mut Dev) -> (Vec<u8>, vmstate::Result<()>) {
    let mut out = Writer::new();
    let saved = dev.save(&mut out);
    (out.into_bytes(), saved)
}

#[test]
fn a_save_runs_its_hooks_around_the_fields() {
    let mut dev = Dev { a: 1, b: 3, x: 6, inner: Inner { y: 2, loaded: 0 }, ..Dev::default() };
    let (bytes, saved) = save(&mut dev);
    saved.unwrap();
    assert_eq!(bytes, BYTES);
    let expected = "pre_save (), validate_a (1, 2), b_must (2, 2, 3), b_exists 2, needed 6, \
        x_pre_save (), x_validate 6, x_post_save (), validate (3, 6), post_save ()";
    assert_eq!(dev.calls.borrow().join(", "), expected);
}

#[test]
fn a_load_runs_its_hooks_where_they_see_what_came_before() {
    let mut dev = Dev { a: 0xa, b: 0xb, x: 0xc, ..Dev::default() };
    dev.load_or_keep(&mut Reader::strict(BYTES), 1).unwrap();
    let expected = "pre_load 10, validate_a (1, 0), b_must (1, 2, 11), b_exists 1, \
        x_pre_load 12, x_validate 6, x_post_load (4, 6), validate (3, 6), post_load (1, 6, 9)";
    assert_eq!(dev.calls.borrow().join(", "), expected);
    assert_eq!((dev.a, dev.inner.y, dev.b, dev.x), (1, 2, 3, 6));
}

#[test]
fn hooks_of_an_absent_subsection_do_not_run() {
    let mut dev = Dev::default();
    dev.load_or_keep(&mut Reader::strict(&BYTES[..3]), 2).unwrap();
    assert!(!dev.calls.borrow().iter().any(|call| call.starts_with("x_")));
}

#[test]
fn post_save_runs_after_a_failed_save_but_not_after_a_refused_pre_save() {
    let last = |fail| {
        let mut dev = Dev::failing(fail);
        assert_eq!(save(&mut dev).1.unwrap_err().kind(), ErrorKind::Rejected);
        dev.calls.take().pop().unwrap()
    };
    for fail in ["validate_a", "b_must", "x_pre_save", "x_validate", "validate"] {
        assert_eq!(last(fail), "post_save ()", "{fail}");
    }
    assert_eq!(last("pre_save"), "pre_save ()");
}

#[test]
fn a_hooks_error_has_its_place_and_whole_text() {
    for (fail, text) in [
        ("pre_load", "at 0x0: pre_load: bad weather: it rains"),
        ("validate_a", "a at 0x1: validate: bad weather: it rains"),
        ("b_must", "b at 0x2: must_exist: Self::b_must is false"),
        ("x_pre_load", "dev/x at 0xe: pre_load: bad weather: it rains"),
        ("x_validate", "dev/x at 0xf: validate: bad weather: it rains"),
        ("x_post_load", "dev/x at 0xf: post_load: bad weather: it rains"),
        ("validate", "at 0xf: validate: bad weather: it rains"),
        ("post_load", "at 0xf: post_load: bad weather: it rains"),
    ] {
        let mut dev = Dev::failing(fail);
        let error = dev.load_or_keep(&mut Reader::strict(BYTES), 2).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (text, ErrorKind::Rejected));
    }
    let error = Dev::default().load_or_keep(&mut Reader::strict(b"\x01\xff\x03"), 2).unwrap_err();
    assert_eq!(error.to_string(), "inner at 0x2: post_load: y is 0xff");
}

#[derive(VmState, Default)]
#[vmstate(name = "ours", post_load = Self::thaw)]
struct Ours {
    a: u8,
}

impl Ours {
    fn thaw(&mut self, _version: u32) -> vmstate::Result<()> {
        Err(Error::new(ErrorKind::Incompatible, "no such clock").in_field("clock"))
    }
}

#[test]
fn an_error_of_the_library_keeps_its_kind() {
    let error = Ours::default().load_or_keep(&mut Reader::strict(b"\x01"), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(error.to_string(), "clock at 0x1: no such clock");
}
