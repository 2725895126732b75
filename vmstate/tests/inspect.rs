//! Values by a self-description alone: bytes written out, and descriptions that lie.

use serde_json::{Value as Json, json};
use vmstate::codec::Reader;
use vmstate::error::ErrorKind;
use vmstate::inspect::{Fields, Value};

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
    assert_eq!(fields.to_json(), expected);
    assert_eq!((fields.fields[6].offset, fields.fields[6].size), (28, 4));
}

#[test]
fn what_came_before_the_damage_is_kept() {
    let description = json!({"fields": [
        {"name": "a", "type": "uint8", "size": 1},
        {"name": "pair", "array_len": 2, "type": "struct", "size": 3, "struct": {"fields": [
            {"name": "b", "type": "uint8", "size": 1}, {"name": "c", "type": "uint16", "size": 2}]}},
    ]});
    let (fields, result) = read(&[1, 2, 0, 3, 4, 0], &description);
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "pair[1] › c at 0x5: 2 bytes expected, 1 left");
    assert_eq!(fields.to_json(), json!({"a": 1, "pair": [{"b": 2, "c": 3}, {"b": 4}]}));
}

#[test]
fn a_description_that_lies_is_an_error_with_its_place() {
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
fn elements_without_bytes_cost_of_the_budget() {
    let (fields, result) = read(&[], &one(&json!({"name": "x", "array_len": u64::MAX, "type": "buffer", "size": 0})));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Malformed);
    let kept: usize =
        fields.fields.iter().map(|field| if let Value::Array(all) = &field.value { all.len() } else { 0 }).sum();
    assert!(kept < 1 << 20, "{kept} values");
}
