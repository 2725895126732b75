//! Kinds that need more than a comparison of sizes: limits, pointers, lists, timers, versions of nested structs, codecs.

use vmstate::compat::{Comparison, Direction, Verdict, check};
use vmstate::schema::{Description, Field, Kind, Limit, Presence};

use crate::{ALL_LOADS, U8, U32, description, field, nested, plain, says, since, when};

fn limited(kind: Kind, limit: Limit) -> Kind {
    Kind::Limited(kind.into(), limit)
}

fn one_of(values: &[i128]) -> Kind {
    limited(U8, Limit::OneOf(values.to_vec().into()))
}

/// Checks that all streams load, and rely on something.
fn both_load(there: &str, back: &str) -> String {
    format!("old -> new, version 1: loads\n{there}\nnew -> old, version 1: loads\n{back}")
}

fn only(kind: Kind) -> Description {
    plain(vec![field("mode", kind)])
}

#[test]
fn an_enum_gains_a_variant() {
    says(
        &only(one_of(&[0, 1, 2])),
        &only(one_of(&[0, 1, 2, 3])),
        "old -> new, version 1: loads
        new -> old, version 1: loads if mode is not 3, else breaks at mode because the reader takes only 0 to 2 -> send what the old release does not take in a subsection that is sent only when needed",
    );
}

#[test]
fn an_enum_loses_a_variant() {
    says(
        &only(one_of(&[0, 1, 2])),
        &only(one_of(&[0, 2])),
        "old -> new, version 1: loads if mode is not 1, else breaks at mode because the reader takes only 0 or 2 -> go on taking what was written, and map it after the load
        new -> old, version 1: loads",
    );
}

/// Only an integer is a tag. After a struct in its place, a reader looks for subsections, and a writer does not.
#[test]
fn a_struct_in_place_of_a_tag_decides_alike_on_both_sides() {
    let front = nested("front", vec![field("number", U8)]);
    let variant = Field::new("more".into(), U32, Presence::Tag(1));
    let dev = plain(vec![field("front", front), variant, field("end", U8)]);
    let report = check(&dev, &dev);
    assert!(report.is_compatible(true), "{report}");
}

#[test]
fn an_integer_becomes_an_enum() {
    says(
        &only(U8),
        &only(one_of(&[0, 1, 7])),
        "old -> new, version 1: loads if mode is 0, 1 or 7, else breaks at mode because the reader takes only 0, 1 or 7 -> go on taking what was written, and map it after the load
        new -> old, version 1: loads",
    );
}

#[test]
fn an_enum_of_other_values_never_loads() {
    says(
        &only(one_of(&[0, 1])),
        &only(one_of(&[2, 3])),
        "old -> new, version 1: breaks at mode because the reader takes only 2 or 3 -> go on taking what was written, and map it after the load
        new -> old, version 1: breaks at mode because the reader takes only 0 or 1 -> send what the old release does not take in a subsection that is sent only when needed",
    );
}

#[test]
fn a_range_grows() {
    says(
        &only(limited(U32, Limit::Within(1, 9))),
        &only(limited(U32, Limit::Within(1, 12))),
        "old -> new, version 1: loads
        new -> old, version 1: loads if mode is 1 to 9, else breaks at mode because the reader takes only 1 to 9 -> send what the old release does not take in a subsection that is sent only when needed",
    );
}

#[test]
fn a_sign_is_part_of_the_limit() {
    // 128 to 255 are the bytes of -128 to -1.
    says(
        &only(limited(Kind::Signed(1), Limit::Within(-2, 5))),
        &only(limited(U8, Limit::Within(0, 254))),
        "old -> new, version 1: loads if mode is not -1, else breaks at mode because the reader takes only 0 to 254 -> go on taking what was written, and map it after the load
        warning: mode (i8) is read as mode (u8): the same bytes, another range of values
        new -> old, version 1: loads if mode is not 6 to 253, else breaks at mode because the reader takes only -2 to 5 -> send what the old release does not take in a subsection that is sent only when needed
        warning: mode (u8) is read as mode (i8): the same bytes, another range of values",
    );
}

#[test]
fn a_number_becomes_a_character() {
    says(
        &only(U32),
        &only(limited(U32, Limit::Scalar)),
        "old -> new, version 1: loads if mode is 0 to 55295 or 57344 to 1114111, else breaks at mode because the reader takes only 0 to 55295 or 57344 to 1114111 -> go on taking what was written, and map it after the load
        new -> old, version 1: loads",
    );
}

#[test]
fn padding_is_zero() {
    let gone = only(Kind::Unused(1));
    let verdicts = |kind| check(&gone, &only(kind)).comparisons[0].to_string();
    assert!(verdicts(one_of(&[0, 1])).contains(": loads\n"));
    assert!(
        verdicts(limited(U8, Limit::NotZero)).contains(": breaks at mode because the reader takes only 1 to 255 ->")
    );
}

#[test]
fn raw_bytes_are_any_value() {
    says(
        &plain(vec![field("raw", Kind::Buffer(1))]),
        &only(Kind::Bool),
        "old -> new, version 1: loads if mode (from raw) is 0 or 1, else breaks at mode because the reader takes only 0 or 1 -> go on taking what was written, and map it after the load
        warning: raw (raw bytes) is read as mode (bool): integers on one side, raw bytes on the other
        new -> old, version 1: loads
        warning: mode (bool) is read as raw (raw bytes): integers on one side, raw bytes on the other",
    );
}

#[test]
fn a_limit_does_not_reach_over_two_integers() {
    let pair = plain(vec![field("a", U8), field("b", U8)]);
    let report = check(&only(limited(Kind::Unsigned(2), Limit::Within(0, 1))), &pair);
    assert!(report.to_string().contains("breaks at mode because mode (u16) is read as a (u8)"), "{report}");
}

#[test]
fn what_the_machine_has_is_a_condition_if_only_the_reader_asks() {
    let (old, new) = (only(U32), only(limited(U32, Limit::Equal)));
    says(
        &old,
        &new,
        "old -> new, version 1: loads if both machines have the same mode, else breaks at mode because the reader takes only the value that its machine has -> take any value and compare it in validate, or configure both machines to have the same
        new -> old, version 1: loads",
    );
    // Both sides compare: the machines are configured alike for that.
    let relies = "relies on: both machines, to be configured to have the same mode";
    says(&new, &new, &both_load(relies, relies));
    let up_to = only(limited(U32, Limit::AtMostCurrent));
    says(&up_to, &up_to, &both_load(relies, relies));
    let back = check(&new, &up_to).comparisons[1].to_string();
    assert!(back.contains("loads if both machines have the same mode, else"), "{back}");
}

#[test]
fn pointers_meet_pointers() {
    let pointer = |name: &str, to: Kind| plain(vec![field(name, Kind::Nullable(to.into())), field("z", U8)]);
    let relies = |name| format!("relies on: both machines, to be configured to have the same nulls of {name}");
    says(&pointer("a", U32), &pointer("b", U32), &both_load(&relies("a"), &relies("b")));
    says(
        &pointer("a", U32),
        &plain(vec![field("a", U32), field("z", U8)]),
        "old -> new, version 1: loads if a is not null, else breaks at a because it may be null on one side only -> keep the pointer as it was; send what is new in a subsection
        new -> old, version 1: loads if a is not null, else breaks at a because it may be null on one side only -> keep the pointer as it was; send what is new in a subsection",
    );
    let report = check(&pointer("a", U32), &pointer("a", U8)).to_string();
    assert!(report.contains("loads if a is null, else breaks at a because a (u32) is read as a (u8)"), "{report}");
}

#[test]
fn lists_are_their_elements() {
    let list = |name: &str, kind: Kind| plain(vec![field(name, Kind::List(kind.into()))]);
    let entry = |name: &str| nested("entry", vec![field(name, U8), field("tag", U32)]);
    says(&list("queue", entry("id")), &list("requests", entry("number")), ALL_LOADS);
    let report = check(&list("queue", U8), &list("queue", U32)).to_string();
    let condition = "loads if queue is empty, else breaks at queue[] because queue[] (u8) is read as queue[] (u32)";
    assert!(report.contains(condition), "{report}");
    // Even an empty list ends with a marker.
    for other in [Kind::CountedArray(U8.into()), Kind::Map(U8.into(), U8.into()), U8, Kind::Unused(1)] {
        let report = check(&list("queue", U8), &only(other)).to_string();
        assert!(report.contains("old -> new, version 1: breaks at "), "{report}");
    }
}

#[test]
fn maps_are_their_keys_and_values() {
    let map = |value: Kind| plain(vec![field("domains", Kind::Map(U32.into(), value.into()))]);
    let relies = "relies on: the keys of domains, to have the same order on both sides";
    says(&map(nested("range", vec![field("low", U8)])), &map(U8), &both_load(relies, relies));
    let report = check(&map(one_of(&[1, 2])), &map(one_of(&[1]))).to_string();
    assert!(report.contains("loads if domains[].value is 1, else breaks at domains[].value because"), "{report}");
}

#[test]
fn other_meanings_of_8_bytes_are_warned_of() {
    says(
        &only(Kind::Timer),
        &only(Kind::Unsigned(8)),
        "old -> new, version 1: loads
        warning: mode (timer) is read as mode (u64): the same bytes, another meaning
        new -> old, version 1: loads
        warning: mode (u64) is read as mode (timer): the same bytes, another meaning",
    );
    for kind in [Kind::Timer, Kind::Double, Kind::Bitmap(64)] {
        says(&only(kind.clone()), &only(kind), ALL_LOADS);
    }
}

#[test]
fn bitmaps_are_words() {
    says(&only(Kind::Bitmap(128)), &plain(vec![field("words", Kind::Bitmap(128))]), ALL_LOADS);
    // Bits beyond the last one are 0.
    says(
        &only(Kind::Bitmap(66)),
        &only(Kind::Bitmap(65)),
        "old -> new, version 1: loads if mode[1] is 0 or 1, else breaks at mode[1] because the reader takes only 0 or 1 -> go on taking what was written, and map it after the load
        new -> old, version 1: loads",
    );
    let report = check(&only(Kind::Bitmap(64)), &only(Kind::Bitmap(65))).to_string();
    assert!(
        report.contains("old -> new, version 1: breaks at mode[1] because the stream does not have it"),
        "{report}"
    );
    // A number of bits is not a number of words.
    let report = check(&only(Kind::CountedBitmap), &only(Kind::CountedArray(Kind::Unsigned(8).into()))).to_string();
    assert!(report.contains("loads if mode is empty, else breaks at mode because the two sides count"), "{report}");
}

#[test]
fn a_nested_struct_at_a_version_stays_at_it() {
    let regs = |version| description("regs", (version, 1), vec![field("a", U8), since("b", U8, 2)], vec![]);
    let at = |version| plain(vec![field("regs", Kind::StructAt(regs(2).into(), version))]);
    let old = plain(vec![field("regs", Kind::Struct(regs(1).into()))]);
    says(&old, &at(1), ALL_LOADS);
    let report = check(&old, &at(2)).to_string();
    assert!(report.contains("breaks at regs.b because the stream does not have it"), "{report}");
    let report = check(&old, &at(3)).to_string();
    assert!(report.contains("breaks at regs because version 3 is newer than 2"), "{report}");
}

#[test]
fn codecs_go_by_their_name() {
    says(
        &only(Kind::Custom("virtio".into())),
        &only(Kind::Custom("virtio 2".into())),
        "old -> new, version 1: breaks at mode because the two sides do not use the same hand-written codec -> keep the codec and the name of its type
        new -> old, version 1: breaks at mode because the two sides do not use the same hand-written codec -> keep the codec and the name of its type",
    );
}

#[test]
fn predicates_without_a_name_are_one_only_if_the_fields_are() {
    let device = |name: &str| plain(vec![field("a", U8), when(name, U32, "")]);
    says(
        &device("b"),
        &device("b"),
        "old -> new, version 1: loads
        relies on: the predicates of b, which have no name, to have the same outcome on both sides
        new -> old, version 1: loads
        relies on: the predicates of b, which have no name, to have the same outcome on both sides",
    );
    says(
        &device("b"),
        &device("c"),
        "old -> new, version 1: loads unless the predicate of b is false and the predicate of c is true, else breaks at c because the stream does not have it -> put the new field into a subsection, or raise the version and give it since = that version; and unless the predicate of b is true and the predicate of c is false, else breaks at b because the reader does not have it -> go on reading the field, or put Unused of its size in its place
        new -> old, version 1: loads unless the predicate of c is false and the predicate of b is true, else breaks at b because the stream does not have it -> go on sending the field, or Unused of its size if the old release takes 0 for it; and unless the predicate of c is true and the predicate of b is false, else breaks at c because the reader does not have it -> put the new field into a subsection that is sent only when needed",
    );
}

#[test]
fn a_rename_of_a_list_does_not_part_its_predicates() {
    let entry = || nested("entry", vec![field("id", U8), when("tag", U32, "tagged")]);
    let list = |name: &str| plain(vec![field(name, Kind::CountedArray(entry().into()))]);
    says(
        &list("queue"),
        &list("requests"),
        &both_load(
            "relies on: the predicates tagged of queue[] and tagged of requests[], to have the same outcome on both sides",
            "relies on: the predicates tagged of requests[] and tagged of queue[], to have the same outcome on both sides",
        ),
    );
}

#[test]
fn fields_of_one_name_are_distinguished() {
    let twice = |second| plain(vec![field("config", U8), field("config", second)]);
    let report = check(&twice(U8), &twice(one_of(&[0, 1]))).to_string();
    assert!(report.contains("loads if config#2 is 0 or 1, else breaks at config#2"), "{report}");
}

/// A nested struct with the name of an enclosing subsection: a probe for the struct's subsections does not find that one.
#[test]
fn a_struct_named_as_a_subsection_takes_nothing_from_it() {
    let inner = description("dev/x", (1, 1), vec![field("list", Kind::CountedArray(U8.into()))], vec![]);
    let more = description("dev/x", (1, 1), vec![field("a", U8)], vec![]);
    let fields = vec![field("inner", Kind::Struct(inner.into())), field("other", Kind::CountedArray(U32.into()))];
    let dev = description("dev", (1, 1), fields, vec![more]);
    says(&dev, &dev, ALL_LOADS);
}

/// The name of the device's subsection begins with the name of a struct at the end of an array of variable length.
#[test]
fn an_ambiguous_probe_for_subsections_is_not_compared() {
    let element = description("dev/x", (1, 1), vec![field("a", U8)], vec![]);
    let more = description("dev/x/y", (1, 1), vec![field("a", U8)], vec![]);
    let fields = vec![field("list", Kind::CountedArray(Kind::Struct(element.into()).into()))];
    let dev = description("dev", (1, 1), fields, vec![more]);
    let report = check(&dev, &dev);
    assert!(!report.is_compatible(false));
    let Comparison { direction, verdict, .. } = &report.comparisons[0];
    assert!(matches!((direction, verdict), (Direction::OldToNew, Verdict::NotCompared(_))), "{report}");
    assert!(
        report
            .to_string()
            .contains("not compared at list because a probe for subsections may take other bytes for one there ->")
    );
}

#[test]
fn the_report_as_json() {
    let old = plain(vec![field("mode", one_of(&[0, 1])), field("timer", Kind::Custom("timer".into()))]);
    let new = plain(vec![field("mode", one_of(&[0])), field("timer", Kind::Custom("timer".into()))]);
    let expected = r#"{
      "section": "dev",
      "comparisons": [
        {
          "direction": "old-to-new",
          "version": 1,
          "verdict": {
            "loads-if": [
              {
                "when": [{"subject": {"value": {"field": "mode", "taken": [[0, 0]], "refused": [[1, 1]]}}, "holds": false}],
                "breaks": {
                  "field": "mode",
                  "reason": {"not-taken": {"taken": "0"}},
                  "remedy": "go on taking what was written, and map it after the load"
                }
              }
            ]
          },
          "warnings": [],
          "relies_on": [{"codec": "timer"}]
        },
        {"direction": "new-to-old", "version": 1, "verdict": "loads", "warnings": [], "relies_on": [{"codec": "timer"}]}
      ]
    }"#;
    let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
    assert_eq!(serde_json::to_value(check(&old, &new)).unwrap(), expected);
}
