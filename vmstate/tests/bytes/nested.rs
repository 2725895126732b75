//! Subsections of subsections: their bytes, and which of them a load accepts (QEMU's `vmstate_subsection_load`, which calls
//! itself through `vmstate_load_state`).

use vmstate::codec::{Limits, Reader, Strictness, Writer};
use vmstate::raw::vmdesc;
use vmstate::{ErrorKind, VmState, Wire};

/// The names and the nesting of `vmstate_kvm_nested_state` (QEMU 10.0, target/i386/machine.c), with shorter contents.
#[derive(VmState, Default, Debug, PartialEq)]
#[vmstate(name = "cpu/kvm_nested_state", pre_load = Self::forget, post_load = Self::loaded)]
#[vmstate(subsection(name = "cpu/kvm_nested_state/vmx", needed = Self::is_vmx, post_load = Self::vmx_loaded))]
#[vmstate(subsection(name = "cpu/kvm_nested_state/vmx/vmcs12", post_load = Self::vmcs12_loaded))]
#[vmstate(subsection(name = "cpu/kvm_nested_state/vmx/shadow_vmcs12", version = 3, minimum_version = 2))]
struct Nested {
    flags: u16,
    #[vmstate(subsection = "cpu/kvm_nested_state/vmx")]
    vmxon: u32,
    #[vmstate(subsection = "cpu/kvm_nested_state/vmx")]
    size: u8,
    #[vmstate(subsection = "cpu/kvm_nested_state/vmx/vmcs12", buffer, len = size, max = 4)]
    vmcs12: Vec<u8>,
    #[vmstate(subsection = "cpu/kvm_nested_state/vmx/shadow_vmcs12")]
    shadow: Option<u16>,
    #[vmstate(skip)]
    hooks: Vec<&'static str>,
}

impl Nested {
    fn forget(&mut self) -> Result<(), String> {
        self.hooks.push("pre");
        Ok(())
    }

    fn loaded(&mut self, _: u32) -> Result<(), String> {
        self.hooks.push("whole");
        Ok(())
    }

    fn vmx_loaded(&mut self, _: u32) -> Result<(), String> {
        self.hooks.push("vmx");
        Ok(())
    }

    fn vmcs12_loaded(&mut self, _: u32) -> Result<(), String> {
        self.hooks.push("vmcs12");
        if self.vmcs12.first() == Some(&0xff) { Err("no VMCS begins so".into()) } else { Ok(()) }
    }

    fn is_vmx(&self) -> bool {
        self.vmxon != 0
    }
}

const FLAGS: &[u8] = b"\x12\x34";
const VMX: &[u8] = b"\x05\x18cpu/kvm_nested_state/vmx\0\0\0\x01\0\0\0\x07\x02";
const VMCS12: &[u8] = b"\x05\x1fcpu/kvm_nested_state/vmx/vmcs12\0\0\0\x01\xab\xcd";
const SHADOW: &[u8] = b"\x05\x26cpu/kvm_nested_state/vmx/shadow_vmcs12\0\0\0\x03\x56\x78";

fn full() -> Nested {
    let hooks = vec![];
    Nested { flags: 0x1234, vmxon: 7, size: 2, vmcs12: vec![0xab, 0xcd], shadow: Some(0x5678), hooks }
}

fn save(mut state: Nested) -> (Vec<u8>, Vec<u32>) {
    let mut out = Writer::recording();
    state.save(&mut out).unwrap();
    out.into_parts()
}

fn load_into(state: &mut Nested, strictness: Strictness, parts: &[&[u8]]) -> vmstate::Result<()> {
    let bytes = parts.concat();
    let mut input = Reader::new(&bytes, 0x100, strictness, Limits::default()).complete();
    state.load_or_keep(&mut input, 1)?;
    assert_eq!(input.rest(), b"");
    Ok(())
}

fn load(parts: &[&[u8]]) -> vmstate::Result<Nested> {
    let mut state = Nested::default();
    load_into(&mut state, Strictness::Strict, parts)?;
    Ok(state)
}

#[test]
fn inner_ones_follow_the_fields_of_the_one_they_belong_to() {
    assert_eq!(save(full()), ([FLAGS, VMX, VMCS12, SHADOW].concat(), vec![1, 1, 2, 1]));
    let no_shadow = Nested { shadow: None, ..full() };
    assert_eq!(save(no_shadow), ([FLAGS, VMX, VMCS12].concat(), vec![1, 1, 2, 0]));
    let no_vmx = Nested { vmxon: 0, ..full() };
    assert_eq!(save(no_vmx), (FLAGS.to_vec(), vec![0]), "an absent one takes those inside of it along");
}

#[test]
fn inner_ones_load_in_any_order_and_may_be_absent() {
    for parts in [[FLAGS, VMX, VMCS12, SHADOW], [FLAGS, VMX, SHADOW, VMCS12]] {
        let loaded = load(&parts).unwrap();
        assert_eq!(loaded.hooks, ["pre", "vmcs12", "vmx", "whole"], "inner hooks run first");
        assert_eq!(Nested { hooks: vec![], ..loaded }, full());
    }
    let mut state = full();
    load_into(&mut state, Strictness::Strict, &[FLAGS, VMX]).unwrap();
    assert_eq!((state.shadow, &state.vmcs12[..]), (None, &[0xab, 0xcd][..]));
    let mut state = full();
    load_into(&mut state, Strictness::Strict, &[FLAGS]).unwrap();
    assert_eq!((state.vmxon, state.shadow), (7, None), "what is inside of an absent one is absent");
}

#[test]
fn each_belongs_to_one_level() {
    // Without its parent, an inner subsection belongs to nothing; nor does a name with the inner one as its prefix end it.
    for (parts, text) in [
        (
            vec![FLAGS, VMCS12],
            "at 0x102: subsection \"cpu/kvm_nested_state/vmx/vmcs12\" is not known to \"cpu/kvm_nested_state\"",
        ),
        (
            vec![FLAGS, VMX, b"\x05\x19cpu/kvm_nested_state/vmx2\0\0\0\x01"],
            "cpu/kvm_nested_state/vmx at 0x125: subsection \"cpu/kvm_nested_state/vmx2\" is not known to \
             \"cpu/kvm_nested_state/vmx\"",
        ),
    ] {
        let error = load(&parts).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Incompatible, text.to_owned()));
    }
}

#[test]
fn errors_name_every_level_and_leave_all_as_it_was() {
    let refused: [(&[&[u8]], &str); 3] = [
        (
            &[FLAGS, VMX, b"\x05\x26cpu/kvm_nested_state/vmx/shadow_vmcs12\0\0\0\x01\x56\x78"],
            "cpu/kvm_nested_state/vmx › cpu/kvm_nested_state/vmx/shadow_vmcs12 at 0x151: \
             version 1 is older than 2, the oldest that loads",
        ),
        (
            &[FLAGS, VMX, b"\x05\x1fcpu/kvm_nested_state/vmx/vmcs12\0\0\0\x01\xff\0"],
            "cpu/kvm_nested_state/vmx › cpu/kvm_nested_state/vmx/vmcs12 at 0x14c: post_load: no VMCS begins so",
        ),
        (
            &[FLAGS, VMX, VMCS12, VMCS12],
            "cpu/kvm_nested_state/vmx at 0x14c: subsection \"cpu/kvm_nested_state/vmx/vmcs12\" comes twice",
        ),
    ];
    for (parts, text) in refused {
        let mut state = Nested { flags: 9, shadow: Some(1), ..Nested::default() };
        let error = load_into(&mut state, Strictness::Strict, parts).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!((state.flags, state.vmxon, state.size, state.shadow), (9, 0, 0, Some(1)));
    }
    let mut state = Nested::default();
    load_into(&mut state, Strictness::QemuCompatible, &[FLAGS, VMX, VMCS12, VMCS12, VMX]).unwrap();
    assert_eq!((state.vmxon, state.vmcs12), (7, vec![0xab, 0xcd]), "QEMU takes any of them again");
}

#[test]
fn the_self_description_nests_them() {
    let (_, outcomes) = save(full());
    let described = serde_json::Value::from(vmdesc(Nested::DESCRIPTION, &outcomes).unwrap());
    let expected = r#"{"vmsd_name":"cpu/kvm_nested_state","version":1,
        "fields":[{"name":"flags","type":"uint16","size":2}],
        "subsections":[{"vmsd_name":"cpu/kvm_nested_state/vmx","version":1,
            "fields":[{"name":"vmxon","type":"uint32","size":4},{"name":"size","type":"uint8","size":1}],
            "subsections":[
                {"vmsd_name":"cpu/kvm_nested_state/vmx/vmcs12","version":1,
                    "fields":[{"name":"vmcs12","type":"buffer","size":2}]},
                {"vmsd_name":"cpu/kvm_nested_state/vmx/shadow_vmcs12","version":3,
                    "fields":[{"name":"shadow","type":"uint16","size":2}]}]}]}"#;
    assert_eq!(described, serde_json::from_str::<serde_json::Value>(expected).unwrap());
}

/// A parent without fields, as some of QEMU's subsections have none of their own.
#[derive(VmState, Default)]
#[vmstate(name = "d")]
#[vmstate(subsection(name = "d/e"))]
#[vmstate(subsection(name = "d/e/f"))]
#[vmstate(subsection(name = "d/e/f/g"))]
struct Deep {
    a: u8,
    #[vmstate(subsection = "d/e/f/g")]
    g: u8,
}

#[test]
fn four_levels_two_of_them_empty() {
    let mut out = Writer::new();
    Deep { a: 1, g: 2 }.save(&mut out).unwrap();
    let bytes = b"\x01\x05\x03d/e\0\0\0\x01\x05\x05d/e/f\0\0\0\x01\x05\x07d/e/f/g\0\0\0\x01\x02";
    assert_eq!(out.as_slice(), bytes);
    let mut deep = Deep::default();
    deep.load_or_keep(&mut Reader::strict(bytes), 1).unwrap();
    assert_eq!((deep.a, deep.g), (1, 2));
}
