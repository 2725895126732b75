//! Collections preceded by their number: the limit and the number are part of the comparison.

use vmstate::VmState;
use vmstate::schema::of;

use crate::{ALL_LOADS, says};

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Few {
    #[vmstate(counted = u8, max = 2)]
    words: Vec<u16>,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Many {
    #[vmstate(counted = u8, max = 3)]
    words: Vec<u16>,
}

/// Like `Many`, with a field for the number.
#[derive(VmState)]
#[vmstate(name = "dev")]
struct ByField {
    count: u8,
    #[vmstate(len = count, max = 3)]
    words: Vec<u16>,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Text {
    #[vmstate(counted = u8, max = 3)]
    text: String,
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Bytes {
    #[vmstate(counted = u8, max = 3)]
    text: Vec<u8>,
}

#[test]
fn a_lower_limit_breaks() {
    says(
        of::<Few>(),
        of::<Many>(),
        "old -> new, version 1: loads
        new -> old, version 1: loads if words.elements has at most 2 elements, else breaks at words.elements because the reader takes at most 2 elements -> send what the old release does not take in a subsection that is sent only when needed",
    );
}

#[test]
fn a_field_for_the_number_is_the_same_bytes() {
    says(of::<Many>(), of::<ByField>(), ALL_LOADS);
}

#[test]
fn text_relies_on_utf_8() {
    says(
        of::<Text>(),
        of::<Bytes>(),
        "old -> new, version 1: loads
        warning: text.elements[] (raw bytes) is read as text.elements[] (u8): integers on one side, raw bytes on the other
        new -> old, version 1: loads
        warning: text.elements[] (u8) is read as text.elements[] (raw bytes): integers on one side, raw bytes on the other
        relies on: the device's own code, to accept the loaded values: UTF-8 of text.elements",
    );
}
