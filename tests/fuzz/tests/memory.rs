//! Short inputs that ask for much memory, by repeating a long name. Each stays within its target's bound.

use serde_json::{Value, json};
use vmstate_fuzz::Target;

/// A name of 16 KiB.
fn long(name: &str) -> String {
    name.repeat(16 << 10)
}

fn run(target: &str, input: &[u8]) {
    Target::named(target).expect("a target").run(input);
}

fn schema(fields: &[Value], subsections: &[Value]) -> String {
    json!({"d": {"Name": "d", "version_id": 1, "minimum_version_id": 1, "Description": {
        "name": "d", "version_id": 1, "minimum_version_id": 1, "Fields": fields, "Subsections": subsections,
    }}})
    .to_string()
}

fn inner(name: &str) -> Value {
    json!({"name": "i", "version_id": 1, "minimum_version_id": 1, "Fields": [
        {"field": name, "version_id": 0, "field_exists": false, "type": "uint8", "size": 1},
        {"field": "b", "version_id": 0, "field_exists": false, "type": "uint16", "size": 2},
    ]})
}

#[test]
fn names_in_a_self_description() {
    let empty = json!({"name": long("n"), "type": "t", "size": 0});
    let many = json!({"name": "a", "array_len": u32::MAX, "type": "struct", "size": 0, "struct": {"fields": [empty]}});
    run("inspect", json!({"name": "d", "instance_id": 0, "version": 1, "fields": [many]}).to_string().as_bytes());
}

#[test]
fn types_in_a_self_description() {
    let empty = json!({"name": "n", "type": long("t"), "size": 0});
    let many = json!({"name": "a", "array_len": u32::MAX, "type": "struct", "size": 0, "struct": {"fields": [empty]}});
    run("inspect", json!({"name": "d", "instance_id": 0, "version": 1, "fields": [many]}).to_string().as_bytes());
}

#[test]
fn paths_in_a_schema() {
    let many = json!({"field": long("a"), "version_id": 0, "field_exists": false, "type": "struct", "size": 3,
        "num": 20_000, "Description": inner("n")});
    run("schema", schema(&[many], &[]).as_bytes());
}

#[test]
fn predicates_in_a_schema() {
    let field = |number: usize| {
        json!({"field": "f", "version_id": 0, "field_exists": true, "type": "uint8", "size": 1,
            "exists": long(&"abcdefghijklmnop"[number..=number])})
    };
    let twice: Vec<Value> = (0..16).chain(0..16).map(field).collect();
    run("schema", schema(&twice, &[]).as_bytes());
}

#[test]
fn subsections_in_a_schema() {
    let subsection =
        |number: usize| json!({"name": format!("d/{}{number}", long("s")), "version_id": 1, "minimum_version_id": 1});
    let all: Vec<Value> = (0..64).map(subsection).collect();
    run("schema", schema(&[], &all).as_bytes());
}

#[test]
fn codecs_in_a_schema() {
    let list =
        json!({"type": "list", "size": 0, "element": {"type": "struct", "size": 3, "Description": inner(&long("n"))}});
    let mut many = json!({"field": "a", "version_id": 0, "field_exists": false, "num": 20_000});
    many.as_object_mut().expect("an object").extend(list.as_object().expect("an object").clone());
    run("schema", schema(&[many], &[]).as_bytes());
}
