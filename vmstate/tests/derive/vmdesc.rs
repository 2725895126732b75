//! The self-description's quirks, each as QEMU 10.0 shows it (migration/vmstate.c, `vmsd_desc_field_start`).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vmstate::codec::Writer;
use vmstate::raw::vmdesc;
use vmstate::schema::json::Schema;
use vmstate::schema::{Kind, Limit};
use vmstate::{ErrorKind, Timer, Unused, VmState};

fn describe<T: VmState>(mut state: T) -> Value {
    let mut out = Writer::recording();
    state.save(&mut out).unwrap();
    vmdesc(T::DESCRIPTION, &out.into_parts().1).unwrap().into()
}

/// A field as `name array_len index type size`.
fn shown(field: &Value) -> String {
    let keys = ["name", "array_len", "index", "type", "size"];
    let values = keys.map(|key| match &field[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    values.join(" ")
}

fn fields<T: VmState>(state: T) -> Vec<String> {
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
        // The last of many has no index: QEMU counts the remaining elements.
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

#[derive(VmState, Default)]
#[vmstate(name = "pointers")]
struct Pointers {
    words: [Option<Box<u16>>; 5],
    structs: [Option<Box<Plain>>; 3],
    #[vmstate(unframed)]
    extra: [Option<Box<Extra>>; 4],
}

/// `vmstate_save_state_v` of 10.0.2: each change between null and non-null starts a new entry, with the number of equal pointers
/// that follow. The first run is only compared with "not null": its entry has the total number.
#[test]
fn an_array_of_pointers_is_shown_in_runs() {
    let word = || Some(Box::new(1));
    let plain = || Some(Box::default());
    let extra = |y| Some(Box::new(Extra { x: 0, y }));
    let pointers = Pointers {
        words: [word(), word(), None, None, word()],
        structs: [plain(), plain(), plain()],
        extra: [None, None, extra(0), extra(1)],
    };
    let expected = [
        "words 5 - uint16 2",
        "words 2 - nullptr 1",
        "words - - uint16 2",
        "structs 3 - struct 5",
        // Elements that cannot be combined have an entry each, and nulls count the remaining ones.
        "extra 2 - nullptr 1",
        "extra 3 - nullptr 1",
        "extra - 2 struct 1",
        "extra - - struct 18",
    ];
    assert_eq!(fields(pointers), expected);
    let nulls = fields(Pointers::default());
    assert_eq!(nulls[..2], ["words 5 - nullptr 1", "structs 3 - nullptr 1"]);
    assert_eq!(
        nulls[2..],
        ["extra 4 - nullptr 1", "extra 3 - nullptr 1", "extra 2 - nullptr 1", "extra - - nullptr 1"]
    );
}

#[derive(VmState, Default)]
#[vmstate(name = "kinds")]
struct Kinds {
    timer: Timer,
    timers: [Timer; 2],
    #[vmstate(bitmap)]
    bitmap: [u64; 2],
    bits: u8,
    #[vmstate(bitmap, len = bits, max = 99)]
    counted: Vec<u64>,
    #[vmstate(len = bits * 2, max = 200, buffer)]
    buffer: Vec<u8>,
    #[vmstate(slice = 1..3)]
    slice: [[u16; 2]; 4],
    #[vmstate(slice = 1..4, buffer)]
    bytes: [u8; 4],
    #[vmstate(range = 0..=7)]
    range: u8,
    one: Option<Box<u32>>,
}

#[test]
fn kinds_that_qemu_has_are_called_as_there() {
    let kinds = Kinds { bits: 65, counted: vec![0; 2], buffer: vec![0; 130], ..Kinds::default() };
    let expected = [
        "timer - - timer 8",
        "timers 2 - timer 8",
        "bitmap - - bitmap 16",
        "bits - - uint8 1",
        "counted - - bitmap 16",
        "buffer - - buffer 130",
        "slice 4 - uint16 2",
        "bytes - - buffer 3",
        "range - - uint8 1",
        "one - - nullptr 1",
    ];
    assert_eq!(fields(kinds), expected);
}

#[derive(VmState, Default)]
#[vmstate(name = "collections")]
struct Collections {
    #[vmstate(list, max = 9)]
    list: Vec<Plain>,
    #[vmstate(list, max = 9)]
    rows: Vec<[u16; 3]>,
    #[vmstate(map, max = 9)]
    map: BTreeMap<u64, Plain>,
    #[vmstate(map, max = 9)]
    empty: BTreeMap<u64, Option<Box<u8>>>,
    last: u8,
}

/// An element is described in the field itself (`put_qtailq` passes the field's writer on to `vmstate_save_state`); of several
/// elements, JSON keeps the last.
#[test]
fn elements_of_lists_and_maps_are_described_in_the_field() {
    let plain = |list: &[u16]| Plain { x: 0, n: u8::try_from(list.len()).unwrap(), list: list.to_vec() };
    let collections = Collections {
        list: vec![plain(&[1]), plain(&[1, 2])],
        rows: vec![[0; 3]; 2],
        map: BTreeMap::from([(1, plain(&[])), (2, plain(&[1]))]),
        empty: BTreeMap::from([(1, None), (2, Some(Box::new(2)))]),
        last: 0,
    };
    let expected = [
        // 1 + (4 + 1 + 2) + 1 + (4 + 1 + 4) + 1
        "list - - qtailq 19",
        "rows - - qtailq 15",
        // 4 + 1 + 8 + (4 + 1) + 1 + 8 + (4 + 1 + 2) + 1
        "map - - gtree 35",
        "empty - - gtree 25",
        "last - - uint8 1",
    ];
    let described = describe(collections);
    assert_eq!(described["fields"].as_array().unwrap().iter().map(shown).collect::<Vec<_>>(), expected);
    let element = json!([
        {"name": "x", "type": "uint32", "size": 4},
        {"name": "n", "type": "uint8", "size": 1},
        {"name": "list", "array_len": 2, "type": "uint16", "size": 2},
    ]);
    assert_eq!(described["fields"][0]["vmsd_name"], "plain");
    assert_eq!(described["fields"][0]["fields"], element);
}

#[test]
fn descriptions_of_all_kinds_survive_json() {
    let mut schema = Schema::new(None);
    let kinds = [Pointers::DESCRIPTION, Kinds::DESCRIPTION, Collections::DESCRIPTION, Ranges::DESCRIPTION];
    for description in kinds {
        schema.add(&description.name, description).unwrap();
    }
    assert_eq!(Schema::from_json(&schema.to_json()).unwrap(), schema);
}

/// The description contains the limit of a reader.
#[test]
fn a_range_is_a_limit_of_the_kind() {
    let limit = |name: &str| {
        let found = Ranges::DESCRIPTION.fields.iter().find(|field| &*field.name == name);
        found.map(|field| field.kind.clone()).unwrap()
    };
    let within = |inner: Kind, first, last| Kind::Limited(inner.into(), Limit::Within(first, last));
    assert_eq!(limit("closed"), within(Kind::Unsigned(1), 1, 8));
    assert_eq!(limit("half_open"), within(Kind::Unsigned(8), 0, i128::from(u64::MAX) - 1));
    assert_eq!(limit("from"), within(Kind::Signed(1), -5, i128::from(i64::MAX)));
    assert_eq!(limit("to"), within(Kind::Signed(4), i128::from(i32::MIN), 1));
    assert_eq!(Ranges::DESCRIPTION.fields.len(), 4, "no check besides");
}

#[derive(VmState, Default)]
#[vmstate(name = "ranges")]
struct Ranges {
    #[vmstate(range = 1..=LAST)]
    closed: u8,
    #[vmstate(range = ..u64::MAX)]
    half_open: u64,
    #[vmstate(range = -5.., wire = i8)]
    from: i64,
    #[vmstate(range = ..=Self::HIGH)]
    to: i32,
}

const LAST: u8 = 8;

impl Ranges {
    const HIGH: i32 = 1;
}
