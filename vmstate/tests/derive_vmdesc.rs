//! The self-description's quirks, each as QEMU 10.0 shows it (migration/vmstate.c, `vmsd_desc_field_start`).

use serde_json::{Value, json};
use vmstate::codec::Writer;
use vmstate::schema::vmdesc;
use vmstate::{ErrorKind, Unused, VmState};

fn describe<T: VmState>(mut state: T) -> Value {
    let mut out = Writer::recording();
    state.save(&mut out).unwrap();
    vmdesc(T::DESCRIPTION, &out.into_parts().1).unwrap().into()
}

/// Names, counts and sizes of the fields, as `name array_len index type size`.
fn fields<T: VmState>(state: T) -> Vec<String> {
    let shown = |field: &Value| {
        let keys = ["name", "array_len", "index", "type", "size"];
        let values = keys.map(|key| match &field[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        values.join(" ")
    };
    describe(state)["fields"].as_array().unwrap().iter().map(shown).collect()
}

#[derive(VmState, Default)]
#[vmstate(name = "scalars")]
struct Scalars {
    a: bool,
    b: u8,
    c: i16,
    d: u32,
    e: i64,
    #[vmstate(buffer)]
    f: [u8; 5],
    g: Unused<6>,
}

#[test]
fn types_are_named_as_qemu_names_them() {
    let expected =
        ["a - - bool 1", "b - - uint8 1", "c - - int16 2", "d - - uint32 4", "e - - int64 8", "f - - buffer 5"];
    assert_eq!(fields(Scalars::default())[..6], expected);
    assert_eq!(fields(Scalars::default())[6], "unused - - unused_buffer 6");
}

#[derive(VmState, Default, Clone)]
#[vmstate(name = "plain")]
struct Plain {
    x: u32,
    n: u8,
    #[vmstate(len = n, max = 9)]
    list: Vec<u16>,
}

#[derive(VmState, Default)]
#[vmstate(name = "extra", subsection(name = "extra/more", needed = Self::more))]
struct Extra {
    x: u8,
    #[vmstate(subsection = "extra/more")]
    y: u8,
}

impl Extra {
    fn more(&self) -> bool {
        self.y != 0
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "checked")]
struct Checked {
    #[vmstate(validate = Self::fine)]
    x: u8,
}

impl Checked {
    fn fine(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

#[derive(VmState, Default)]
#[vmstate(name = "arrays")]
struct Arrays {
    words: [u16; 3],
    one: [u16; 1],
    none: [u16; 0],
    table: [[u8; 2]; 4],
    #[vmstate(exists = Self::always)]
    conditional: [u16; 3],
    plain: [Plain; 2],
    #[vmstate(unframed)]
    extra: [Extra; 3],
    checked: [Checked; 2],
}

impl Arrays {
    fn always(&self, _version: u32) -> bool {
        true
    }
}

#[test]
fn an_array_is_one_entry_unless_its_elements_may_differ() {
    let plain = |list: &[u16]| Plain { x: 0, n: u8::try_from(list.len()).unwrap(), list: list.to_vec() };
    let mut arrays = Arrays { plain: [plain(&[1, 2, 3]), plain(&[4])], ..Arrays::default() };
    arrays.extra[1].y = 1;
    let expected = [
        "words 3 - uint16 2",
        "one - - uint16 2",
        "table 8 - uint8 1",
        // The last of many has no index: QEMU counts the elements that are left.
        "conditional - 0 uint16 2",
        "conditional - 1 uint16 2",
        "conditional - - uint16 2",
        // The size is the first element's.
        "plain 2 - struct 11",
        "extra - 0 struct 1",
        // 05, length, name, version, y.
        "extra - 1 struct 18",
        "extra - - struct 1",
        "checked - 0 struct 1",
        "checked - - struct 1",
    ];
    assert_eq!(fields(arrays), expected);
}

#[derive(VmState, Default)]
#[vmstate(name = "dup")]
struct Dup {
    #[vmstate(name = "env.xmm_regs")]
    low: u64,
    #[vmstate(name = "env.xmm_regs", exists = Self::never)]
    middle: u64,
    #[vmstate(name = "env.xmm_regs")]
    high: u64,
    a: Unused<1>,
    b: Unused<2>,
}

impl Dup {
    fn never(&self, _version: u32) -> bool {
        false
    }
}

#[test]
fn equal_names_are_numbered_and_absent_ones_count() {
    let expected = [
        "env.xmm_regs[0] - - uint64 8",
        "env.xmm_regs[2] - - uint64 8",
        "unused[0] - - unused_buffer 1",
        "unused[1] - - unused_buffer 2",
    ];
    assert_eq!(fields(Dup::default()), expected);
}

#[test]
fn subsections_are_listed_if_any_was_sent() {
    let without = json!({"vmsd_name": "extra", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}]});
    assert_eq!(describe(Extra::default()), without);
    let y = json!({"vmsd_name": "extra/more", "version": 1, "fields": [{"name": "y", "type": "uint8", "size": 1}]});
    assert_eq!(describe(Extra { x: 0, y: 1 })["subsections"], json!([y]));
}

#[test]
fn outcomes_of_another_description_are_refused() {
    for outcomes in [&[][..], &[0, 0]] {
        assert_eq!(vmdesc(Extra::DESCRIPTION, outcomes).unwrap_err().kind(), ErrorKind::Misuse);
    }
}
