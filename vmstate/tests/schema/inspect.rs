//! Values decoded by a self-description or a schema alone: literal bytes, and wrong descriptions.

use serde_json::{Value as Json, json};
use vmstate::codec::{Limits, Reader, Strictness};
use vmstate::dump::Dump;
use vmstate::error::ErrorKind;
use vmstate::inspect::{Fields, Value};
use vmstate::schema::{self, Description, Kind, Limit, Presence};

fn read(bytes: &[u8], description: &Json) -> (Fields, vmstate::Result<()>) {
    let mut fields = Fields::default();
    let result = fields.read(&mut Reader::strict(bytes), description);
    (fields, result)
}

fn one(field: &Json) -> Json {
    json!({"vmsd_name": "dev", "version": 1, "fields": [field]})
}

#[test]
fn each_type_has_its_meaning() {
    let field = |name: &str, kind: &str, size: u64| json!({"name": name, "type": kind, "size": size});
    let description = json!({"vmsd_name": "dev", "version": 1,
        "fields": [
            field("on", "bool", 1), field("low", "int8", 1), field("least", "int64", 8), field("most", "uint64", 8),
            field("expiry", "timer", 8), field("raw", "buffer", 2),
            {"name": "regs", "array_len": 2, "type": "uint16", "size": 2},
            {"name": "slot", "index": 0, "type": "struct", "size": 1,
                "struct": {"vmsd_name": "slot", "version": 1, "fields": [field("a", "uint8", 1)]}},
        ],
        "subsections": [{"vmsd_name": "dev/sub", "version": 2, "fields": [field("b", "uint8 equal", 1)]}]});
    let mut bytes = vec![1, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([0xff; 16]);
    bytes.extend([0xab, 0xcd, 0, 1, 2, 0, 7]);
    bytes.extend(b"\x05\x07dev/sub\0\0\0\x02\x09");
    let (fields, result) = read(&bytes, &description);
    result.unwrap();
    let expected = json!({"on": true, "low": -2, "least": i64::MIN, "most": u64::MAX, "expiry": u64::MAX, "raw": "abcd",
        "regs": [1, 0x200], "slot[0]": {"a": 7}, "dev/sub": {"version": 2, "fields": {"b": 9}}});
    assert_eq!(json_of(&fields), expected);
    assert_eq!((fields.fields[6].offset, fields.fields[6].size), (28, 4));
}

#[test]
fn values_before_the_damage_are_kept() {
    let description = json!({"fields": [
        {"name": "a", "type": "uint8", "size": 1},
        {"name": "pair", "array_len": 2, "type": "struct", "size": 3, "struct": {"fields": [
            {"name": "b", "type": "uint8", "size": 1}, {"name": "c", "type": "uint16", "size": 2}]}},
    ]});
    let (fields, result) = read(&[1, 2, 0, 3, 4, 0], &description);
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "pair[1] › c at 0x5: 2 bytes expected, 1 left");
    assert_eq!(json_of(&fields), json!({"a": 1, "pair": [{"b": 2, "c": 3}, {"b": 4}]}));
}

#[test]
fn a_wrong_description_is_an_error_with_its_place() {
    for (field, message) in [
        (json!({"name": "x", "type": "uint16", "size": 4}), "x at 0x0: a uint16 has 2 bytes, the description says 4"),
        (json!({"name": "x", "type": "bool", "size": 1}), "x at 0x0: a bool is 0 or 1, got 5"),
        (
            json!({"name": "x", "type": "buffer", "size": -1}),
            "x at 0x0: the self-description has no usable \"size\" for what is here",
        ),
        (
            json!({"name": "x", "type": "buffer", "size": u64::MAX}),
            "x at 0x0: 18446744073709551615 bytes expected, 4 left",
        ),
        (
            json!({"name": "x", "type": "struct", "size": 2, "struct": {"fields": []}}),
            "x at 0x0: a struct of 2 bytes is described, its fields have 0",
        ),
    ] {
        let (_, result) = read(&[5, 0, 0, 0], &one(&field));
        assert_eq!(result.unwrap_err().to_string(), message);
    }
}

#[test]
fn elements_without_bytes_are_charged_to_the_budget() {
    let (fields, result) = read(&[], &one(&json!({"name": "x", "array_len": u64::MAX, "type": "buffer", "size": 0})));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Malformed);
    let kept: usize =
        fields.fields.iter().map(|field| if let Value::Array(all) = &field.value { all.len() } else { 0 }).sum();
    assert!(kept < 1 << 20, "{kept} values");
}

/// Bytes of the names in the values of an array.
fn name_bytes(fields: &Fields) -> usize {
    let inside = |value: &Value| match value {
        Value::Struct(fields) => name_bytes(fields),
        Value::Array(values) => {
            values.iter().map(|value| if let Value::Struct(fields) = value { name_bytes(fields) } else { 0 }).sum()
        }
        _ => 0,
    };
    fields.fields.iter().map(|field| field.name.len() + inside(&field.value)).sum()
}

/// Each element has its own copy of the field names, so a long name in a huge array must not exceed the limit.
#[test]
fn names_are_charged_to_the_budget_as_well() {
    let long = "n".repeat(1 << 12);
    let inner = described("in", 1, vec![since(&long, byte(), 0)], vec![]);
    let dev =
        described("dev", 1, vec![since("x", Kind::Array(Kind::Struct(inner.into()).into(), usize::MAX), 0)], vec![]);
    let mut by_schema = Fields::default();
    let body = vec![0; 1 << 16];
    assert_eq!(by_schema.read_by_schema(&mut Reader::strict(&body), &dev, 1).unwrap_err().kind(), ErrorKind::Malformed);
    let inner = json!({"fields": [{"name": long, "type": "uint8", "size": 1}]});
    let field = json!({"name": "x", "array_len": u64::MAX, "type": "struct", "size": 1, "struct": inner});
    let (by_stream, read) = read(&body, &one(&field));
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Malformed);
    for fields in [by_schema, by_stream] {
        let kept = name_bytes(&fields);
        assert!((1 << 20..=64 << 20).contains(&kept), "{kept} bytes of names");
    }
}

fn by_schema(bytes: &[u8], version: u32, description: &Description) -> (Json, vmstate::Result<()>) {
    let mut fields = Fields::default();
    let result = fields.read_by_schema(&mut Reader::strict(bytes), description, version);
    (json_of(&fields), result)
}

fn since(name: &str, kind: Kind, version: u32) -> schema::Field {
    schema::Field::new(name.into(), kind, Presence::Since(version))
}

/// A description with this newest version, and oldest version 1.
fn described(name: &str, version: u32, fields: Vec<schema::Field>, subsections: Vec<Description>) -> Description {
    Description::new(name.into(), version, 1, fields.into(), subsections.into())
}

fn byte() -> Kind {
    Kind::Unsigned(1)
}

#[test]
fn a_schema_gives_each_kind_its_bytes() {
    let pair = described("pair", 2, vec![since("a", byte(), 0), since("b", byte(), 2)], vec![]);
    let fields = [
        ("on", Kind::Bool),
        ("low", Kind::Signed(2)),
        ("limited", Kind::Limited(byte().into(), Limit::NotZero)),
        ("expiry", Kind::Timer),
        ("ratio", Kind::Double),
        ("raw", Kind::Buffer(2)),
        ("gap", Kind::Unused(1)),
        ("bits", Kind::Bitmap(65)),
        ("pairs", Kind::Array(Kind::Struct(pair.clone().into()).into(), 2)),
        ("old", Kind::StructAt(pair.into(), 1)),
        ("place", Kind::Check),
        ("list", Kind::List(Kind::Unsigned(2).into())),
        ("map", Kind::Map(byte().into(), byte().into())),
        ("pointer", Kind::Nullable(byte().into())),
        ("size", Kind::Custom("size 3".into())),
    ];
    let fields = fields.map(|(name, kind)| since(name, kind, 0)).to_vec();
    let more = described("dev/more", 3, vec![since("x", byte(), 0)], vec![]);
    let mut bytes = vec![1, 0xff, 0xfe, 7];
    bytes.extend([0xff; 8]);
    bytes.extend([0x3f, 0xf0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0xab, 0xcd, 0]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
    bytes.extend([1, 2, 3, 4]);
    bytes.extend([9]);
    bytes.extend([1, 0, 5, 1, 1, 0, 0]);
    bytes.extend([0, 0, 0, 1, 1, 8, 9, 0]);
    bytes.extend([0x31, 0xaa, 0xbb, 0xcc]);
    bytes.extend(b"\x05\x08dev/more\0\0\0\x03\x2a");
    let (found, result) = by_schema(&bytes, 1, &described("dev", 1, fields, vec![more]));
    result.unwrap();
    let expected = json!({"on": true, "low": -2, "limited": 7, "expiry": u64::MAX, "ratio": "3ff0000000000000",
        "raw": "abcd", "gap": "00", "bits": "00000000000000010000000000000002",
        "pairs": [{"a": 1, "b": 2}, {"a": 3, "b": 4}], "old": {"a": 9}, "list": [5, 256],
        "map": [{"key": 8, "value": 9}], "pointer": 0x31, "size": "aabbcc",
        "dev/more": {"version": 3, "fields": {"x": 42}}});
    assert_eq!(found, expected);
}

#[test]
fn a_schema_stops_where_the_bytes_do_not_determine_what_follows() {
    for (kind, says) in [
        (Kind::CountedArray(byte().into()), "the schema does not say which field has its length"),
        (Kind::CountedBuffer, "the schema does not say which field has its length"),
        (Kind::CountedBitmap, "the schema does not say which field has its length"),
        (Kind::Custom("fifo".into()), "only its codec fifo can decode its bytes"),
        (Kind::Custom("size 0".into()), "the schema does not state its size"),
        (Kind::Nullable(byte().into()), "0x30 is a null pointer, or the first byte of the value"),
    ] {
        let fields = vec![since("a", byte(), 0), since("x", kind, 0), since("b", byte(), 0)];
        let (found, result) = by_schema(&[1, 0x30, 2], 1, &described("dev", 1, fields, vec![]));
        let error = result.unwrap_err();
        assert_eq!((found, error.kind()), (json!({"a": 1}), ErrorKind::Incompatible));
        assert_eq!(error.to_string(), format!("x at 0x1: {says}"));
    }
    let says = |bytes: &[u8], version, dev: &Description| by_schema(bytes, version, dev).1.unwrap_err().to_string();
    let perhaps = schema::Field::new("a".into(), byte(), Presence::If("has_a".into()));
    let dev = described("dev", 3, vec![perhaps], vec![]);
    assert_eq!(says(&[1], 3, &dev), "a at 0x0: has_a decides whether the field is present");
    assert_eq!(says(&[1], 4, &dev), "at 0x0: version 4, the schema has 1 to 3");
    let dev = described("dev", 1, vec![since("a", byte(), 0)], vec![]);
    let says = says(b"\x01\x05\x05dev/x\0\0\0\x01", 1, &dev);
    assert_eq!(says, "at 0x1: subsection dev/x, which the schema does not have");
    // A name that is not longer than the struct's, or has another beginning, is not one of its subsections.
    for other in [&b"\x01\x05\x03dev\0\0\0\x01"[..], b"\x01\x05\x05den/x\0\0\0\x01", b"\x01\x05\x09dev/x"] {
        assert!(by_schema(other, 1, &dev).1.is_ok());
    }
    // More bytes may follow, which could be its name.
    let mut more = Reader::new(b"\x01\x05\x05dev", 0, Strictness::Strict, Limits::default());
    let error = Fields::default().read_by_schema(&mut more, &dev, 1).unwrap_err();
    assert_eq!((error.is_incomplete(), error.offset()), (true, Some(1)));
}

#[test]
fn a_tag_selects_the_variant() {
    let of = |number: i128| schema::Field::new(number.to_string().as_str().into(), byte(), Presence::Tag(number));
    let mode = |first| described("mode", 2, vec![first, of(-1), of(3), since("last", byte(), 0)], vec![]);
    let signed = mode(since("tag", Kind::Signed(2), 0));
    let read = |bytes: &[u8], version, mode: &Description| {
        let (fields, result) = by_schema(bytes, version, mode);
        (fields, result.map_err(|error| error.to_string()))
    };
    assert_eq!(read(&[0xff, 0xff, 7, 8], 2, &signed), (json!({"tag": -1, "-1": 7, "last": 8}), Ok(())));
    assert_eq!(read(&[0, 3, 7, 8], 2, &signed), (json!({"tag": 3, "3": 7, "last": 8}), Ok(())));
    assert_eq!(read(&[0, 4, 8], 2, &signed), (json!({"tag": 4, "last": 8}), Ok(())));
    // A value that is not a number, or is missing, decides nothing.
    let unclear = Err("-1 at 0x0: a missing tag decides whether the field is present".to_owned());
    assert_eq!(read(&[7, 8], 1, &mode(since("tag", byte(), 2))), (json!({}), unclear));
    let buffer = mode(since("tag", Kind::Buffer(1), 0));
    assert!(read(&[3, 7, 8], 2, &buffer).1.is_err());
}

#[test]
fn bytes_that_do_not_fit_a_schema_are_malformed() {
    let read = |bytes: &[u8], kind| by_schema(bytes, 1, &described("dev", 1, vec![since("x", kind, 0)], vec![])).1;
    for (kind, bytes, says) in [
        (Kind::Bool, &[2][..], "x at 0x0: a bool is 0 or 1, got 2"),
        (Kind::List(byte().into()), &[1, 5, 7], "x at 0x2: 1 before an element or 0 at the end expected, got 7"),
        (Kind::Map(byte().into(), byte().into()), &[0, 0, 0, 2, 0], "x at 0x0: 2 entries are announced, 0 follow"),
        (
            Kind::Map(byte().into(), Kind::Bool.into()),
            &[0, 0, 0, 1, 1, 9, 9],
            "x[0] › value at 0x6: a bool is 0 or 1, got 9",
        ),
        (Kind::Array(Kind::Unsigned(2).into(), 2), &[0, 1, 2], "x[1] at 0x2: 2 bytes expected, 1 left"),
    ] {
        assert_eq!(read(bytes, kind).unwrap_err().to_string(), says);
    }
    let endless = Kind::Array(Kind::Buffer(0).into(), usize::MAX);
    assert_eq!(read(&[], endless).unwrap_err().kind(), ErrorKind::Malformed);
    // Elements without bytes whose many parts are absent: checks, and fields of a later version.
    for absent in [since("x", Kind::Check, 0), since("x", byte(), 2)] {
        let inner = described("in", 2, vec![absent; 1 << 20], vec![]);
        let endless = Kind::Array(Kind::StructAt(inner.into(), 1).into(), usize::MAX);
        assert_eq!(read(&[], endless).unwrap_err().kind(), ErrorKind::Malformed);
    }
}

/// Whatever part of a stream is present or damaged: there is a result, with damage where something is missing.
#[test]
fn a_damaged_stream_is_read_by_a_schema_as_far_as_it_goes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/locks/uart/1");
    let stream = std::fs::read(format!("{folder}/busy.bin")).unwrap();
    let schema = std::fs::read_to_string(format!("{folder}/schema.json")).unwrap();
    let schema = schema::json::Schema::from_json(&schema).unwrap();
    // After the last section's footer and the end of the sections comes the self-description.
    let end = stream.windows(7).position(|window| window == [0x7e, 0, 0, 0, 2, 0, 6]).unwrap() + 6;
    let whole = Dump::read_with(&stream[..end], &schema);
    let uart = whole.sections().last().unwrap();
    assert!(whole.damage.is_none() && uart.unread.is_none());
    assert_eq!(json_of(uart.fields.as_ref().unwrap()), json!({"divider": 12, "ier": 5, "lcr": 3}));
    for cut in 0..end {
        assert!(Dump::read_with(&stream[..cut], &schema).damage.is_some(), "{cut} bytes");
    }
    for at in 0..end {
        let mut changed = stream[..end].to_vec();
        changed[at] ^= 0xff;
        Dump::read_with(&changed, &schema);
    }
}

fn json_of(fields: &Fields) -> serde_json::Value {
    serde_json::to_value(fields).unwrap()
}
