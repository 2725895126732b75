//! Schemas as JSON: literal text, QEMU's own dump, every possible description, and refused texts.

use proptest::prelude::*;
use serde_json::{Value, json};
use vmstate::error::ErrorKind;
use vmstate::schema::json::Schema;
use vmstate::schema::{Description, Field, Kind, Limit, MaybeStatic, Presence};
use vmstate::section::Sections;
use vmstate::{Unused, VmState};

const QEMU: &str = include_str!("../fixtures/qemu-10.0-dump-vmstate.json");

#[derive(Default, VmState)]
#[vmstate(name = "inner", version = 1, minimum_version = 1)]
struct Inner {
    wide: i32,
}

#[derive(Default, VmState)]
#[vmstate(name = "dev", version = 2, minimum_version = 1)]
#[vmstate(subsection(name = "dev/more", version = 3, needed = Self::has_more))]
struct Dev {
    on: bool,
    #[vmstate(since = 2)]
    level: u16,
    #[vmstate(exists = Self::is_old)]
    old: u8,
    gap: Unused<3>,
    grid: [[Inner; 2]; 3],
    count: u8,
    #[vmstate(len = count, max = 8)]
    list: Vec<u32>,
    #[vmstate(subsection = "dev/more")]
    more: u64,
}

impl Dev {
    fn has_more(&self) -> bool {
        self.more != 0
    }

    fn is_old(&self, version: u32) -> bool {
        version < 2
    }
}

fn of_dev() -> Schema {
    let mut schema = Schema::new(Some("testvm"));
    schema.add("board/dev", Dev::DESCRIPTION).unwrap();
    schema
}

#[test]
fn a_device_is_written_in_qemus_shape_and_read_back() {
    let schema = of_dev();
    let text = schema.to_json();
    let written: Value = serde_json::from_str(&text).unwrap();
    let inner = json!({"name": "inner", "version_id": 1, "minimum_version_id": 1, "hooks": [],
        "Fields": [{"field": "wide", "version_id": 0, "field_exists": false, "size": 4, "type": "int32"}]});
    let more = json!({"name": "dev/more", "version_id": 3, "minimum_version_id": 3, "hooks": [],
        "Fields": [{"field": "more", "version_id": 0, "field_exists": false, "size": 8, "type": "uint64"}]});
    let plain =
        |name, size, kind| json!({"field": name, "version_id": 0, "field_exists": false, "size": size, "type": kind});
    let mut list = plain("list", 4, "uint32");
    list["dimensions"] = json!([null]);
    list["count"] = json!({"length": "count", "most": 8});
    let expected = json!({
        "vmschkmachine": {"Name": "testvm"},
        "board/dev": {"Name": "board/dev", "version_id": 2, "minimum_version_id": 1, "Description": {
            "name": "dev", "version_id": 2, "minimum_version_id": 1, "hooks": [], "Fields": [
                plain("on", 1, "bool"),
                {"field": "level", "version_id": 2, "field_exists": false, "size": 2, "type": "uint16"},
                {"field": "old", "version_id": 0, "field_exists": true, "size": 1, "type": "uint8",
                    "exists": written["board/dev"]["Description"]["Fields"][2]["exists"]},
                plain("gap", 3, "unused_buffer"),
                {"field": "grid", "version_id": 0, "field_exists": false, "num": 6, "size": 4, "type": "struct",
                    "dimensions": [3, 2], "Description": inner},
                plain("count", 1, "uint8"),
                list,
            ], "Subsections": [more]}},
    });
    assert_eq!(written, expected);
    let predicate = written["board/dev"]["Description"]["Fields"][2]["exists"].as_str().unwrap();
    assert!(predicate.contains("is_old"), "{predicate}");
    // Two spaces for each level, and the keys in QEMU's order.
    assert!(
        text.starts_with(
            "{\n  \"vmschkmachine\": {\n    \"Name\": \"testvm\"\n  },\n  \"board/dev\": {\n    \"Name\": "
        )
    );
    let keys = ["\"field\": \"grid\"", "\"version_id\": 0", "\"field_exists\": false", "\"num\": 6", "\"size\": 4"];
    assert!(text.contains(&keys.join(&format!(",\n{:10}", ""))), "{text}");

    let read = Schema::from_json(&text).unwrap();
    assert_eq!(read, schema);
    assert_eq!(read.section("board/dev"), Some(Dev::DESCRIPTION));
    assert_eq!(read.machine(), Some("testvm"));
}

#[test]
fn a_registry_gives_each_name_once() {
    let mut sections = Sections::new();
    sections.register("dev", 0, Dev::default()).unwrap();
    sections.register("inner", 0, Inner::default()).unwrap();
    sections.register("dev", 1, Dev::default()).unwrap();
    let schema = sections.schema(Some("testvm")).unwrap();
    let names: Vec<_> = schema.sections().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names, schema.section("dev")), (vec!["dev", "inner"], Some(Dev::DESCRIPTION)));
}

#[test]
fn one_name_has_one_description() {
    let mut schema = of_dev();
    schema.add("board/dev", Dev::DESCRIPTION).unwrap();
    assert_eq!(schema.sections().len(), 1);
    assert_eq!(schema.add("board/dev", Inner::DESCRIPTION).unwrap_err().kind(), ErrorKind::Misuse);
    assert_eq!(schema.add("vmschkmachine", Dev::DESCRIPTION).unwrap_err().kind(), ErrorKind::Misuse);
}

/// Removes what a dump of QEMU loses: the size of a struct in the host's memory, and a version beside a predicate.
fn without_the_hosts(value: &mut Value) {
    match value {
        Value::Object(object) => {
            let with_predicate = object.get("field_exists") == Some(&Value::Bool(true));
            if with_predicate {
                object.insert("version_id".into(), 0.into());
            }
            if object.contains_key("field") && object.contains_key("Description") {
                object.remove("size");
            }
            ["type", "custom", "dimensions", "exists"].iter().for_each(|ours| drop(object.remove(*ours)));
            object.values_mut().for_each(without_the_hosts);
        }
        Value::Array(values) => values.iter_mut().for_each(without_the_hosts),
        _ => {}
    }
}

#[test]
fn qemus_dump_keeps_its_keys() {
    let schema = Schema::from_json(QEMU).unwrap();
    assert_eq!(schema.machine(), Some("microvm"));
    assert_eq!(schema.sections().len(), 24);
    let bridge = schema.section("pcie-pci-bridge").unwrap();
    assert_eq!((bridge.version, bridge.minimum_version), (0, 0));
    let Kind::Struct(parent) = &bridge.fields[0].kind else { panic!("{bridge:?}") };
    assert_eq!((&*parent.name, parent.version, parent.minimum_version), ("PCIDevice", 2, 1));
    assert_eq!(parent.fields[1].presence, Presence::If("".into()));
    assert_eq!(parent.fields[3].presence, Presence::Since(2));

    let text = schema.to_json();
    assert_eq!(Schema::from_json(&text).unwrap(), schema);
    let (mut ours, mut theirs): (Value, Value) =
        (serde_json::from_str(&text).unwrap(), serde_json::from_str(QEMU).unwrap());
    without_the_hosts(&mut ours);
    without_the_hosts(&mut theirs);
    assert_eq!(ours, theirs);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Value), message: &str) {
    let mut schema: Value = serde_json::from_str(&of_dev().to_json()).unwrap();
    change(&mut schema);
    let error = Schema::from_json(&schema.to_string()).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Malformed, message));
}

#[test]
fn a_wrong_schema_is_refused_with_its_place() {
    let fields = |schema: &mut Value| schema["board/dev"]["Description"]["Fields"].take();
    let field = "/board~1dev/Description/Fields";
    let place = "board/dev › Description › Fields";
    let set = |at: &str, value: Value| {
        let at = format!("{field}/{at}");
        move |schema: &mut Value| *schema.pointer_mut(&at).unwrap() = value
    };
    refused(set("0/size", json!(2)), &format!("{place}[0]: a bool has 1 bytes, \"size\" says 2"));
    refused(set("0/size", json!(-1)), &format!("{place}[0]: \"size\" has to be a number of elements or bytes"));
    refused(set("0/type", json!("int7")), &format!("{place}[0]: type \"int7\" does not exist"));
    refused(set("4/num", json!(7)), &format!("{place}[4]: \"num\" is not the product of \"dimensions\""));
    refused(
        set("1/version_id", json!(1_u64 << 32)),
        &format!("{place}[1]: \"version_id\" has to be a version from 0 to 4294967295"),
    );
    refused(
        set("4/Description/Fields/0", json!({"filed": 1})),
        &format!("{place}[4] › Description › Fields[0]: key \"filed\" is not known"),
    );
    refused(|schema| drop(fields(schema)), &format!("{place}: \"Fields\" has to be a list").replace(" › Fields", ""));
    refused(
        |schema| schema["board/dev"]["version_id"] = json!(3),
        "board/dev: the versions are not those of \"Description\"",
    );
    assert!(Schema::from_json("{\n \"a\": }").unwrap_err().to_string().contains("line 2 column 7"));
}

#[test]
fn depth_is_bounded() {
    let nested = |levels: usize| {
        let open = r#"{"name":"n","version_id":0,"minimum_version_id":0,"Subsections":["#;
        let last = r#"{"name":"n","version_id":0,"minimum_version_id":0}"#;
        let inner = format!("{}{last}{}", open.repeat(levels), "]}".repeat(levels));
        Schema::from_json(&format!(
            r#"{{"d":{{"Name":"d","version_id":0,"minimum_version_id":0,"Description":{inner}}}}}"#
        ))
    };
    nested(32).unwrap();
    assert!(nested(33).unwrap_err().to_string().ends_with("more than 32 descriptions inside one another"));
    // The JSON reader's own limit is an error as well, not an overflow of the stack.
    assert!(nested(100_000).unwrap_err().message().contains("recursion limit"));
}

fn name() -> impl Strategy<Value = MaybeStatic<str>> {
    ".{1,8}".prop_map(|name| name.as_str().into())
}

fn descriptions() -> impl Strategy<Value = Description> {
    let leaf = (name(), any::<u32>(), any::<u32>())
        .prop_map(|(name, new, old)| Description::new(name, new, old, vec![].into(), vec![].into()));
    leaf.prop_recursive(3, 24, 4, |inner| {
        let width = prop::sample::select(vec![1_u8, 2, 4, 8]);
        let limit = prop_oneof![
            Just(Limit::Equal),
            Just(Limit::AtMostCurrent),
            Just(Limit::NotZero),
            Just(Limit::Scalar),
            (any::<i64>(), any::<u64>()).prop_map(|(first, last)| Limit::Within(first.into(), last.into())),
            prop::collection::vec(any::<i64>().prop_map(i128::from), 0..4).prop_map(|list| Limit::OneOf(list.into())),
        ];
        let simple = prop_oneof![
            Just(Kind::Bool),
            Just(Kind::Timer),
            Just(Kind::Double),
            Just(Kind::CountedBitmap),
            (0_usize..200).prop_map(Kind::Bitmap),
            limit.prop_map(|limit| Kind::Limited(Kind::Unsigned(2).into(), limit)),
            (inner.clone(), any::<u32>()).prop_map(|(nested, version)| Kind::StructAt(nested.into(), version)),
            inner.clone().prop_map(|nested| Kind::Temporary(nested.into())),
            Just(Kind::Check),
            Just(Kind::CountedBuffer),
            width.clone().prop_map(Kind::Unsigned),
            width.prop_map(Kind::Signed),
            (0_usize..99).prop_map(Kind::Buffer),
            (0_usize..99).prop_map(Kind::Unused),
            name().prop_map(Kind::Custom),
            "size [0-9+]{1,2}".prop_map(|name| Kind::Custom(name.as_str().into())),
            inner.clone().prop_map(|nested| Kind::Struct(nested.into())),
        ];
        let kind = simple.prop_recursive(3, 3, 1, |element| {
            prop_oneof![
                (element.clone(), 0_usize..5).prop_map(|(element, count)| Kind::Array(element.into(), count)),
                element.clone().prop_map(|element| Kind::CountedArray(element.into())),
                element.clone().prop_map(|element| Kind::List(element.into())),
                element.clone().prop_map(|element| Kind::Nullable(element.into())),
                element.prop_map(|element| Kind::Map(Kind::Unsigned(8).into(), element.into())),
            ]
        });
        let presence = prop_oneof![
            any::<u32>().prop_map(Presence::Since),
            name().prop_map(Presence::If),
            any::<i64>().prop_map(|number| Presence::Tag(number.into())),
            any::<u64>().prop_map(|number| Presence::Tag(number.into())),
        ];
        let field = (name(), kind, presence, any::<bool>()).prop_map(|(name, kind, presence, unframed)| {
            let field = Field::new(name, kind, presence);
            if unframed { field.unframed() } else { field }
        });
        let fields = prop::collection::vec(field, 0..5);
        (name(), any::<u32>(), any::<u32>(), fields, prop::collection::vec(inner, 0..3)).prop_map(
            |(name, new, old, fields, subsections)| Description::new(name, new, old, fields.into(), subsections.into()),
        )
    })
}

proptest! {
    #[test]
    fn whatever_can_be_described_is_read_as_it_was_written(description in descriptions(), required: bool) {
        let mut schema = Schema::new(None);
        schema.add("section", &description).unwrap();
        if required {
            schema.require("section");
        }
        prop_assert_eq!(Schema::from_json(&schema.to_json()).unwrap().requires("section"), required);
        prop_assert_eq!(Schema::from_json(&schema.to_json()).unwrap(), schema);
    }

    #[test]
    fn a_damaged_text_is_an_error_or_a_schema(at in 0..QEMU.len(), byte in 0_u8..128) {
        let mut text = QEMU.as_bytes().to_vec();
        text[at] = byte;
        let _ = Schema::from_json(std::str::from_utf8(&text).unwrap());
    }
}

#[test]
fn older_names_of_a_section_are_in_the_text() {
    let mut sections = Sections::new();
    sections.register("board/inner", 0, Inner::default()).unwrap();
    sections.register("other", 0, Inner::default()).unwrap();
    sections.add_alias("board/inner", "inner").unwrap();
    sections.add_alias("board/inner", "core").unwrap();
    let schema = sections.schema(None).unwrap();
    let written: Value = serde_json::from_str(&schema.to_json()).unwrap();
    assert_eq!(written["board/inner"]["aliases"], json!(["core", "inner"]));
    assert_eq!(written["other"].get("aliases"), None);
    assert_eq!(Schema::from_json(&schema.to_json()).unwrap(), schema);
    for (aliases, says) in [
        (json!(["other"]), "board/inner: its older name \"other\" is another section's name"),
        (json!(["board/inner"]), "board/inner: its older name \"board/inner\" is another section's name"),
        (json!([7]), "board/inner › aliases[0]: a name expected"),
        (json!("inner"), "board/inner: \"aliases\" has to be a list"),
    ] {
        let mut wrong = written.clone();
        wrong["board/inner"]["aliases"] = aliases;
        let error = Schema::from_json(&wrong.to_string()).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Malformed, says));
    }
    let mut twice = written.clone();
    twice["other"]["aliases"] = json!(["core"]);
    let error = Schema::from_json(&twice.to_string()).unwrap_err();
    assert_eq!(error.to_string(), "other: its older name \"core\" is also that of board/inner");
}
