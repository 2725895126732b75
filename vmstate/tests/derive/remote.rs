//! Structs of another crate: KVM's, through mirrors that `remote` converts.

use kvm_bindings::{kvm_clock_data, kvm_dtable, kvm_segment, kvm_xcr, kvm_xcrs};
use vmstate::codec::{Reader, Writer};
use vmstate::{VmState, Wire};

/// Every field of KVM's struct is here: without one of them this file would not compile.
#[derive(VmState)]
#[vmstate(name = "segment", remote = kvm_segment)]
struct Segment {
    selector: u16,
    base: u64,
    limit: u32,
    #[vmstate(range = 0..16, name = "type")]
    type_: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    #[vmstate(skip)]
    unusable: u8,
    #[vmstate(skip)]
    padding: u8,
}

#[derive(VmState)]
#[vmstate(name = "table", remote = kvm_dtable)]
struct Table {
    base: u64,
    limit: u16,
    #[vmstate(skip)]
    padding: [u16; 3],
}

#[derive(VmState)]
#[vmstate(name = "clock", version = 2, minimum_version = 1, remote = kvm_bindings::kvm_clock_data)]
struct Clock {
    clock: u64,
    #[vmstate(since = 2)]
    flags: u32,
    #[vmstate(skip)]
    pad0: u32,
    #[vmstate(skip)]
    realtime: u64,
    #[vmstate(skip)]
    host_tsc: u64,
    #[vmstate(skip)]
    pad: [u32; 4],
}

#[derive(VmState)]
#[vmstate(name = "xcr", remote = kvm_xcr)]
struct Xcr {
    #[vmstate(range = 0..=1)]
    xcr: u32,
    value: u64,
    #[vmstate(skip)]
    reserved: u32,
}

/// A struct of structs: the count comes first, because it is a length.
#[derive(VmState)]
#[vmstate(name = "xcrs", remote = kvm_xcrs)]
struct Xcrs {
    #[vmstate(range = 0..=16)]
    nr_xcrs: u32,
    #[vmstate(via = [Xcr; 16])]
    xcrs: [kvm_xcr; 16],
    #[vmstate(skip)]
    flags: u32,
    #[vmstate(skip)]
    padding: [u64; 16],
}

#[derive(VmState, Default)]
#[vmstate(name = "extended")]
struct Extended {
    #[vmstate(via = Xcrs)]
    xcrs: kvm_xcrs,
}

#[test]
fn an_array_goes_element_by_element() {
    let mut state = Extended::default();
    state.xcrs.nr_xcrs = 1;
    state.xcrs.xcrs[15] = kvm_xcr { xcr: 1, reserved: 4, value: 7 };
    let mut out = Writer::new();
    state.save(&mut out).unwrap();
    let mut expected = vec![0; 4 + 16 * 12];
    (expected[3], expected[4 + 15 * 12 + 3], expected[4 + 15 * 12 + 11]) = (1, 1, 7);
    assert_eq!(out.as_slice(), expected);

    expected[4 + 12 + 3] = 2;
    let error = state.load_or_keep(&mut Reader::strict(&expected), 1).unwrap_err();
    assert_eq!(error.to_string(), "xcrs › xcrs[1] › xcr at 0x14: range: 2 is not in 0..=1");
    expected[4 + 12 + 3] = 1;
    state.load_or_keep(&mut Reader::strict(&expected), 1).unwrap();
    assert_eq!(state.xcrs.xcrs[15], kvm_xcr { xcr: 1, reserved: 4, value: 7 });
}

#[derive(VmState, Default)]
#[vmstate(name = "vcpu")]
struct Vcpu {
    #[vmstate(via = Segment)]
    cs: kvm_segment,
    #[vmstate(via = Table)]
    gdt: kvm_dtable,
    #[vmstate(via = Clock)]
    clock: kvm_clock_data,
}

const CS: &[u8] = b"\0\x10\0\0\0\0\xff\xff\0\0\0\x0f\xff\xff\x0b\x01\0\x01\x01\0\x01\0";
const REST: &[u8] = b"\0\0\0\0\0\0\x12\x34\0\x7f\0\0\0\0\0\0\0\x63\0\0\0\x02";

fn vcpu() -> Vcpu {
    let cs =
        kvm_segment { base: 0xffff_0000, limit: 0xf_ffff, selector: 0x10, type_: 11, present: 1, ..Default::default() };
    Vcpu {
        cs: kvm_segment { db: 1, s: 1, g: 1, unusable: 7, ..cs },
        gdt: kvm_dtable { base: 0x1234, limit: 0x7f, padding: [5; 3] },
        clock: kvm_clock_data { clock: 99, flags: 2, host_tsc: 8, ..Default::default() },
    }
}

#[test]
fn the_bytes_are_those_of_the_mirror() {
    let mut out = Writer::new();
    vcpu().save(&mut out).unwrap();
    assert_eq!(out.as_slice(), [CS, REST].concat());
}

#[test]
fn a_load_sets_what_is_migrated_and_keeps_the_rest() {
    let mut loaded = Vcpu { cs: kvm_segment { unusable: 3, ..Default::default() }, ..Vcpu::default() };
    loaded.load_or_keep(&mut Reader::strict(&[CS, REST].concat()), 1).unwrap();
    assert_eq!(loaded.cs, kvm_segment { unusable: 3, ..vcpu().cs });
    assert_eq!(loaded.gdt, kvm_dtable { padding: [0; 3], ..vcpu().gdt });
    assert_eq!((loaded.clock.clock, loaded.clock.flags, loaded.clock.host_tsc), (99, 2, 0));
}

#[test]
fn the_mirrors_checks_are_the_fields_checks() {
    let mut bytes = [CS, REST].concat();
    bytes[14] = 16;
    let mut loaded = vcpu();
    let error = loaded.load_or_keep(&mut Reader::strict(&bytes), 1).unwrap_err();
    assert_eq!(error.to_string(), "cs › type at 0xf: range: 16 is not in 0..16");
    assert_eq!(loaded.cs, vcpu().cs);
}
