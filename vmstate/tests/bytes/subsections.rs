//! Subsections: their bytes, and which of them a load accepts (QEMU's `vmstate_subsection_load`).

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::{ErrorKind, VmState, Wire};

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "dev", version = 2)]
#[vmstate(subsection(name = "dev/a", needed = Self::has_a))]
#[vmstate(subsection(name = "dev/b", version = 3, minimum_version = 2, needed = Self::has_b))]
struct Dev {
    own: u8,
    #[vmstate(subsection = "dev/a")]
    a: u16,
    #[vmstate(subsection = "dev/b")]
    b: u8,
    #[vmstate(subsection = "dev/b", since = 3)]
    b3: u8,
}

impl Dev {
    fn has_a(&self) -> bool {
        self.a != 0
    }

    fn has_b(&self) -> bool {
        self.b != 0
    }
}

const A: &[u8] = b"\x05\x05dev/a\0\0\0\x01\x12\x34";
const B: &[u8] = b"\x05\x05dev/b\0\0\0\x03\x07\x08";

fn load_as(strictness: Strictness, parts: &[&[u8]]) -> vmstate::Result<Dev> {
    let bytes = parts.concat();
    let mut dev = Dev::default();
    let mut input = Reader::new(&bytes, 0x100, strictness, Limits::default()).complete();
    dev.load_or_keep(&mut input, 2)?;
    assert_eq!(input.rest(), b"");
    Ok(dev)
}

fn load(parts: &[&[u8]]) -> vmstate::Result<Dev> {
    let strict = load_as(Strictness::Strict, parts);
    let lenient = load_as(Strictness::QemuCompatible, parts);
    match (&strict, lenient) {
        (Ok(strict), Ok(lenient)) => assert_eq!(*strict, lenient),
        (Err(strict), Err(lenient)) => assert_eq!(strict.to_string(), lenient.to_string()),
        (strict, lenient) => panic!("{strict:?} and {lenient:?}"),
    }
    strict
}

#[test]
fn needed_ones_are_written_in_declared_order() {
    let save = |mut dev: Dev| {
        let mut out = Writer::recording();
        dev.save(&mut out).unwrap();
        out.into_parts()
    };
    assert_eq!(save(Dev { own: 1, ..Dev::default() }), (vec![1], vec![0, 0]));
    assert_eq!(save(Dev { own: 1, a: 0x1234, ..Dev::default() }), ([b"\x01", A].concat(), vec![1, 0]));
    assert_eq!(save(Dev { own: 1, a: 0x1234, b: 7, b3: 8 }), ([b"\x01", A, B].concat(), vec![1, 1]));
}

#[test]
fn any_order_and_any_absence_loads() {
    assert_eq!(load(&[b"\x01"]).unwrap(), Dev { own: 1, ..Dev::default() });
    assert_eq!(load(&[b"\x01", A]).unwrap(), Dev { own: 1, a: 0x1234, ..Dev::default() });
    let both = Dev { own: 1, a: 0x1234, b: 7, b3: 8 };
    assert_eq!(load(&[b"\x01", A, B]).unwrap(), both);
    assert_eq!(load(&[b"\x01", B, A]).unwrap(), both);
    let old = b"\x05\x05dev/b\0\0\0\x02\x07";
    assert_eq!(load(&[b"\x01", old]).unwrap(), Dev { own: 1, b: 7, ..Dev::default() });
}

#[test]
fn unknown_ones_are_refused() {
    let error = load(&[b"\x01", A, b"\x05\x06dev/zz\0\0\0\x01"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(error.to_string(), "at 0x10e: subsection \"dev/zz\" is not known to \"dev\"");
}

#[test]
fn versions_outside_the_window_are_refused() {
    let error = load(&[b"\x01", b"\x05\x05dev/b\0\0\0\x04\x07\x08"]).unwrap_err();
    assert_eq!(error.to_string(), "dev/b at 0x10c: version 4 is newer than 3");
    let error = load(&[b"\x01", b"\x05\x05dev/b\0\0\0\x01\x07"]).unwrap_err();
    assert_eq!(error.to_string(), "dev/b at 0x10c: version 1 is older than 2, the oldest that loads");
}

#[test]
fn qemu_cuts_the_version_to_a_byte() {
    let wide = b"\x05\x05dev/b\0\0\x01\x03\x07\x08";
    assert_eq!(load_as(Strictness::QemuCompatible, &[b"\x01", wide]).unwrap().b3, 8);
    let error = load_as(Strictness::Strict, &[b"\x01", wide]).unwrap_err();
    assert_eq!(error.to_string(), "dev/b at 0x10c: version 259 is newer than 3");
}

#[test]
fn qemu_takes_one_twice_and_reads_names_up_to_a_nul() {
    let second = b"\x05\x05dev/a\0\0\0\x01\x56\x78";
    assert_eq!(load_as(Strictness::QemuCompatible, &[b"\x01", A, second]).unwrap().a, 0x5678);
    let error = load_as(Strictness::Strict, &[b"\x01", A, second]).unwrap_err();
    assert_eq!(error.to_string(), "at 0x10e: subsection \"dev/a\" comes twice");
    assert_eq!(error.kind(), ErrorKind::Malformed);

    let nul = b"\x05\x07dev/a\0x\0\0\0\x01\x56\x78";
    assert_eq!(load_as(Strictness::QemuCompatible, &[b"\x01", nul]).unwrap().a, 0x5678);
    assert!(load_as(Strictness::Strict, &[b"\x01", nul]).is_err());
}

#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "outer")]
struct Outer {
    #[vmstate(unframed)]
    dev: Dev,
    after: [u8; 4],
}

#[test]
fn bytes_that_only_look_like_one_belong_to_the_next_field() {
    // Wrong first byte; a length not above the parent's name; another name; in a whole buffer, a truncated name.
    for after in [*b"\x04\x05de", *b"\x05\x03de", *b"\x05\x05dx", *b"\x05\x05de"] {
        let bytes = [b"\x01".as_slice(), &after].concat();
        let mut outer = Outer::default();
        outer.load_or_keep(&mut Reader::strict(&bytes), 1).unwrap();
        assert_eq!(outer.after, after);
    }
}

#[test]
fn a_look_ahead_waits_only_while_it_may_still_match() {
    let incomplete = |bytes: &[u8]| {
        let mut input = Reader::new(bytes, 0, Strictness::Strict, Limits::default());
        match Dev::default().load_or_keep(&mut input, 2) {
            Ok(()) => false,
            Err(error) => error.is_incomplete(),
        }
    };
    assert!(incomplete(b"\x01"));
    assert!(incomplete(b"\x01\x05"));
    assert!(incomplete(b"\x01\x05\x05"));
    assert!(incomplete(b"\x01\x05\x05dev/"));
    assert!(incomplete(b"\x01\x05\x05dev/a\0\0\0"));
    assert!(!incomplete(b"\x01\x7e"), "a footer");
    assert!(!incomplete(b"\x01\x05\x03"), "too short a name");
    assert!(!incomplete(b"\x01\x05\x40x"), "another name: no wait for the other 63 bytes");
}

#[derive(VmState, Default)]
#[vmstate(name = "plain")]
struct Plain {
    a: u8,
}

#[test]
fn a_section_without_subsections_names_an_unknown_one() {
    let error = Plain::default().load_or_keep(&mut Reader::strict(b"\x01\x05\x07plain/x\0\0\0\x01"), 1).unwrap_err();
    assert_eq!(error.to_string(), "at 0x1: subsection \"plain/x\" is not known to \"plain\"");
}

/// The golden section of QEMU 10.0.2's fw_cfg.
#[derive(VmState, Default)]
#[vmstate(name = "fw_cfg", version = 2)]
#[vmstate(subsection(name = "fw_cfg/dma", version = 0))]
#[vmstate(subsection(name = "fw_cfg/acpi_mr"))]
struct FwCfg {
    cur_entry: u16,
    cur_offset: u32,
    #[vmstate(subsection = "fw_cfg/dma")]
    dma_addr: u64,
    #[vmstate(subsection = "fw_cfg/acpi_mr")]
    sizes: [u64; 3],
}

#[test]
fn fw_cfg_is_as_qemu_sends_it() {
    let mut out = Writer::new();
    FwCfg { sizes: [0x2ae, 0x680, 0x24], ..FwCfg::default() }.save(&mut out).unwrap();
    let expected = b"\0\0\0\0\0\0\
        \x05\x0afw_cfg/dma\0\0\0\0\0\0\0\0\0\0\0\0\
        \x05\x0efw_cfg/acpi_mr\0\0\0\x01\0\0\0\0\0\0\x02\xae\0\0\0\0\0\0\x06\x80\0\0\0\0\0\0\0\x24";
    assert_eq!(out.as_slice(), expected);
}
