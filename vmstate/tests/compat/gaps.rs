//! Every gap that QEMU's own checker has, and the sentence for it.

use vmstate::compat::{SectionDescription, check, check_registry};
use vmstate::schema::{Description, Kind};

use crate::{ALL_LOADS, U8, U32, description, field, nested, plain, says, since, when};

#[test]
fn the_same_loads() {
    let subsection = description("dev/more", (1, 1), vec![field("x", U8)], vec![]);
    let counted = Kind::CountedArray(nested("entry", vec![field("id", U32), when("tag", U8, "tagged")]).into());
    let fields = vec![
        field("n", U8),
        field("entries", counted),
        when("irq", U32, "has_irq"),
        field("data", Kind::CountedBuffer),
        field("timer", Kind::Custom("timer".into())),
    ];
    let dev = description("dev", (1, 1), fields, vec![subsection]);
    says(
        &dev,
        &dev,
        "old -> new, version 1: loads
        relies on: the hand-written codec \"timer\", to read what it wrote
        relies on: the predicates has_irq, tagged of entries[], to have the same outcome on both sides
        new -> old, version 1: loads
        relies on: the hand-written codec \"timer\", to read what it wrote
        relies on: the predicates has_irq, tagged of entries[], to have the same outcome on both sides",
    );
}

#[test]
fn renames_and_moves_into_a_nested_struct_change_nothing() {
    let old = plain(vec![field("irr", U8), field("base", U32), field("imr", U8)]);
    let inner = nested("regs", vec![field("interrupt_request", U8), field("base", U32)]);
    let new = plain(vec![field("regs", inner), field("mask", U8)]);
    says(&old, &new, ALL_LOADS);
}

#[test]
fn arrays_of_structs_are_their_elements() {
    let pair = || nested("pair", vec![field("a", U8), field("b", U32)]);
    let old = plain(vec![field("pairs", Kind::Array(pair().into(), 2))]);
    let new = plain(vec![field("first", pair()), field("second", pair())]);
    says(&old, &new, ALL_LOADS);
}

#[test]
fn g1_append_without_a_version() {
    let old = plain(vec![field("a", U8)]);
    let new = plain(vec![field("a", U8), field("b", U32)]);
    says(
        &old,
        &new,
        "old -> new, version 1: breaks at b because the stream does not have it -> put the new field into a subsection, or raise the version and give it since = that version
        new -> old, version 1: breaks at b because the reader does not have it -> put the new field into a subsection that is sent only when needed",
    );
}

#[test]
fn g2_array_length() {
    let old = plain(vec![field("regs", Kind::Array(U32.into(), 4)), field("z", U8)]);
    let new = plain(vec![field("regs", Kind::Array(U32.into(), 8)), field("z", U8)]);
    says(
        &old,
        &new,
        "old -> new, version 1: breaks at z because z (u8) is read as regs (u32) -> keep the order and the type on the wire (wire = the old type); new fields go into a subsection, removed ones become Unused
        new -> old, version 1: breaks at regs because regs (u32) is read as z (u8) -> keep the order and the type on the wire (wire = the old type); new fields go into a subsection, removed ones become Unused",
    );
}

#[test]
fn g3_a_predicate_appears() {
    let old = plain(vec![field("a", U8), field("b", U32)]);
    let new = plain(vec![field("a", U8), when("b", U32, "has_b")]);
    says(
        &old,
        &new,
        "old -> new, version 1: loads if has_b is true, else breaks at b because the reader does not have it -> go on reading the field, or put Unused of its size in its place
        new -> old, version 1: loads if has_b is true, else breaks at b because the stream does not have it -> go on sending the field, or Unused of its size if the old release takes 0 for it",
    );
}

#[test]
fn g4_a_field_version_raised() {
    let old = description("dev", (2, 1), vec![field("a", U8), field("b", U8)], vec![]);
    let new = description("dev", (2, 1), vec![field("a", U8), since("b", U8, 2)], vec![]);
    says(
        &old,
        &new,
        "old -> new, version 2: loads
        old -> new, version 1: breaks at b because the reader does not have it -> go on reading the field, or put Unused of its size in its place
        new -> old, version 2: loads",
    );
}

#[test]
fn g5_a_new_subsection() {
    let more = description("dev/more", (1, 1), vec![field("x", U8)], vec![]);
    let old = plain(vec![field("a", U8)]);
    let new = description("dev", (1, 1), vec![field("a", U8)], vec![more]);
    says(
        &old,
        &new,
        "old -> new, version 1: loads
        new -> old, version 1: loads if subsection \"dev/more\" is not sent, else breaks at dev/more because the reader does not know this subsection -> send it only when needed, and never for a machine of the old release",
    );
}

/// The reader takes the next subsection's marker for the field's value: the fault is the field, not that subsection.
#[test]
fn g1_a_field_is_added_in_front_of_subsections() {
    let more = || description("dev/more", (1, 1), vec![field("x", U8)], vec![]);
    let dev = |fields| description("dev", (1, 1), fields, vec![more()]);
    let report = check(&dev(vec![field("a", U8)]), &dev(vec![field("a", U8), field("b", Kind::Unsigned(2))]));
    let text = report.to_string();
    assert!(text.contains("old -> new, version 1: breaks at b because the stream does not have it -> "), "{text}");
}

#[test]
fn g6_a_struct_of_the_same_size() {
    let old = plain(vec![field("a", U32)]);
    let new = plain(vec![field(
        "a",
        nested("halves", vec![field("high", Kind::Unsigned(2)), field("low", Kind::Unsigned(2))]),
    )]);
    says(
        &old,
        &new,
        "old -> new, version 1: breaks at a because a (u32) is read as a.high (u16) -> keep the order and the type on the wire (wire = the old type); new fields go into a subsection, removed ones become Unused
        new -> old, version 1: breaks at a.high because a.high (u16) is read as a (u32) -> keep the order and the type on the wire (wire = the old type); new fields go into a subsection, removed ones become Unused",
    );
}

#[test]
fn g7_no_fields_at_all() {
    says(
        &plain(vec![]),
        &plain(vec![field("a", U8)]),
        "old -> new, version 1: breaks at a because the stream does not have it -> put the new field into a subsection, or raise the version and give it since = that version
        new -> old, version 1: breaks at a because the reader does not have it -> put the new field into a subsection that is sent only when needed",
    );
}

#[test]
fn g8_sections_come_go_and_are_renamed() {
    let dev = plain(vec![field("a", U8)]);
    fn named<'a>(name: &'a str, aliases: &'a [&'a str], description: &'a Description) -> SectionDescription<'a> {
        SectionDescription { name, aliases, description, required: false }
    }
    let old = [named("serial", &[], &dev), named("rtc", &[], &dev), named("pit", &[], &dev)];
    let new = [named("serial", &[], &dev), named("clock", &["rtc"], &dev), named("net", &[], &dev)];
    let report = check_registry(&old, &new);
    assert!(!report.is_compatible(false));
    assert_eq!(
        report.to_string(),
        "serial
  old -> new, version 1: loads
  new -> old, version 1: loads
rtc
  old -> new, version 1: loads
  new -> old, version 1: breaks at clock because the reader does not have this section -> leave the device out of machines of the old release
pit
  old -> new, version 1: breaks at pit because the reader does not have this section -> keep the section, or add its old name to the new one with Sections::add_alias
net
  new -> old, version 1: breaks at net because the reader does not have this section -> leave the device out of machines of the old release
"
    );
}

/// The registration decides whether a section may be missing, not the description.
#[test]
fn g8_sections_that_are_required() {
    let dev = plain(vec![field("a", U8)]);
    let section = |name, required| SectionDescription { name, aliases: &[], description: &dev, required };
    let old = [section("serial", false), section("rtc", true), section("pit", true)];
    let new = [section("serial", true), section("rtc", true), section("net", true)];
    assert_eq!(
        check_registry(&old, &new).to_string(),
        "serial
  old -> new, version 1: loads if section \"serial\" is sent, else breaks at serial because the reader requires this section -> register it as optional: it keeps its reset state if it does not come
  new -> old, version 1: loads
rtc
  old -> new, version 1: loads
  new -> old, version 1: loads
pit
  old -> new, version 1: breaks at pit because the reader does not have this section -> keep the section, or add its old name to the new one with Sections::add_alias
  new -> old, version 1: breaks at pit because the reader requires this section -> go on sending the section
net
  old -> new, version 1: breaks at net because the reader requires this section -> register it as optional: it keeps its reset state if it does not come
  new -> old, version 1: breaks at net because the reader does not have this section -> leave the device out of machines of the old release
"
    );
}

#[test]
fn g9_another_type_of_the_same_size() {
    let old = plain(vec![field("a", U32), field("b", U8), field("c", U8)]);
    let new = plain(vec![field("a", Kind::Signed(4)), field("b", Kind::Buffer(1)), field("c", Kind::Bool)]);
    says(
        &old,
        &new,
        "old -> new, version 1: loads if c is 0 or 1, else breaks at c because the reader takes only 0 or 1 -> go on taking what was written, and map it after the load
        warning: a (u32) is read as a (i32): the same bytes, another range of values
        warning: b (u8) is read as b (raw bytes): integers on one side, raw bytes on the other
        warning: c (u8) is read as c (bool): the same bytes, another range of values
        new -> old, version 1: loads
        warning: a (i32) is read as a (u32): the same bytes, another range of values
        warning: b (raw bytes) is read as b (u8): integers on one side, raw bytes on the other
        warning: c (bool) is read as c (u8): the same bytes, another range of values",
    );
}

#[test]
fn g10_minimum_above_what_the_other_writes() {
    let old = description("dev", (1, 1), vec![field("a", U8)], vec![]);
    let new = description("dev", (3, 2), vec![field("a", U8)], vec![]);
    says(
        &old,
        &new,
        "old -> new, version 1: breaks at dev because version 1 is older than 2, the oldest that loads -> keep minimum_version as it was while such streams may come
        new -> old, version 3: breaks at dev because version 3 is newer than 1 -> do not raise the version: put what is new into a subsection that is sent only when needed",
    );
}

#[test]
fn g11_unused_is_as_many_bytes() {
    let tail = || vec![field("y", U8), field("z", U8)];
    let mut old = vec![field("a", U32), field("b", Kind::Array(U32.into(), 2))];
    old.extend(tail());
    let mut new = vec![field("gone", Kind::Unused(12))];
    new.extend(tail());
    says(
        &plain(old),
        &plain(new),
        "old -> new, version 1: loads
        warning: a (u32) is skipped: the reader has padding there
        warning: b (u32) is skipped: the reader has padding there
        new -> old, version 1: loads
        warning: a (u32) becomes zero: the stream has padding there
        warning: b (u32) becomes zero: the stream has padding there",
    );
}

#[test]
fn a_nested_struct_is_read_at_the_local_version() {
    let inner = |version, fields| Kind::Struct(description("regs", (version, 1), fields, vec![]).into());
    let old = plain(vec![field("regs", inner(1, vec![field("a", U8)]))]);
    let new = plain(vec![field("regs", inner(2, vec![field("a", U8), since("b", U8, 2)]))]);
    says(
        &old,
        &new,
        "old -> new, version 1: breaks at regs.b because the stream does not have it -> put the new field into a subsection of the nested struct, which has no version in the stream; or beside the nested struct, there into a subsection or with since = a new version
        new -> old, version 1: breaks at regs.b because the reader does not have it -> put the new field into a subsection that is sent only when needed",
    );
}

#[test]
fn a_subsection_is_read_at_its_own_version() {
    let dev = |versions, fields| {
        description("dev", (1, 1), vec![field("a", U8)], vec![description("dev/x", versions, fields, vec![])])
    };
    let old = dev((1, 1), vec![field("x", U8)]);
    let new = dev((2, 1), vec![field("x", U8), since("y", U8, 2)]);
    says(
        &old,
        &new,
        "old -> new, version 1: loads
        new -> old, version 1: loads if subsection \"dev/x\" is not sent, else breaks at dev/x because version 2 is newer than 1 -> do not raise the version: put what is new into a subsection that is sent only when needed",
    );
}

#[test]
fn order_of_subsections_does_not_matter() {
    let x = || description("dev/x", (1, 1), vec![field("x", U8)], vec![]);
    let y = || description("dev/y", (1, 1), vec![field("y", U32)], vec![]);
    let old = description("dev", (1, 1), vec![field("a", U8)], vec![x(), y()]);
    let new = description("dev", (1, 1), vec![field("a", U8)], vec![y(), x()]);
    says(&old, &new, ALL_LOADS);
}

#[test]
fn elements_that_grow_break_an_array_that_has_any() {
    let old = plain(vec![field("list", Kind::CountedArray(U8.into()))]);
    let new = plain(vec![field("list", Kind::CountedArray(U32.into()))]);
    let report = check(&old, &new).to_string();
    assert!(
        report.contains(
            "version 1: loads if list is empty, else breaks at list[] because list[] (u8) is read as list[] (u32)"
        ),
        "{report}"
    );
}
