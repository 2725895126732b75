//! Advice for each change that breaks. A test follows each of them literally (tests/remedies/).

use super::layout::Around;
use super::verdict::{Direction, Reason};

/// The advice for a field in the container `around`.
pub(super) fn of(reason: &Reason, direction: Direction, around: Around) -> &'static str {
    use Direction::{NewToOld, OldToNew};
    match (reason, direction) {
        (Reason::TooNew { .. }, NewToOld) => {
            "do not raise the version: put what is new into a subsection that is sent only when needed"
        }
        (Reason::TooNew { .. }, OldToNew) => "do not lower a version that was released",
        (Reason::TooOld { .. }, OldToNew) => "keep minimum_version as it was while such streams may come",
        (Reason::TooOld { .. }, NewToOld) => "do not lower the version below what the old release takes",
        (Reason::NotSent, OldToNew) if around == Around::Variant => {
            "keep the fields of the variant: put what is new into a variant with a number of its own; or beside the enum, there into a subsection or with since = a new version"
        }
        (Reason::NotSent, OldToNew) if around == Around::Nested => {
            "put the new field into a subsection of the nested struct, which has no version in the stream; or beside the nested struct, there into a subsection or with since = a new version"
        }
        (Reason::NotSent, OldToNew) => {
            "put the new field into a subsection, or raise the version and give it since = that version"
        }
        (Reason::NotSent, NewToOld) => {
            "go on sending the field, or Unused of its size if the old release takes 0 for it"
        }
        (Reason::NotRead, OldToNew) => "go on reading the field, or put Unused of its size in its place",
        (Reason::NotRead, NewToOld) => "put the new field into a subsection that is sent only when needed",
        (Reason::OtherItem { .. }, _) => {
            "keep the order and the type on the wire (wire = the old type); new fields go into a subsection, removed ones become Unused"
        }
        (Reason::OtherCount, _) => "keep length and elements as they were; send more in a subsection",
        (Reason::OtherLength, _) => "go on counting the elements by the same field, times the same number",
        (Reason::LengthNotSent, _) => {
            "count the elements by what the writer counts them by, or configure both machines to have the same length"
        }
        (Reason::TooMany { .. }, OldToNew) => "keep `max`, and the room of an array, as large as they were",
        (Reason::OtherOrder, _) => "keep the type of the key",
        (Reason::OtherCodec, _) => "keep the codec and the name of its type",
        (Reason::UnknownSubsection, OldToNew) => "keep the subsection, if only to read it",
        (Reason::UnknownSubsection, NewToOld) => "send it only when needed, and never for a machine of the old release",
        (Reason::NotTaken { .. }, OldToNew) => "go on taking what was written, and map it after the load",
        (Reason::NotTaken { .. } | Reason::TooMany { .. }, NewToOld) => {
            "send what the old release does not take in a subsection that is sent only when needed"
        }
        (Reason::NotConfigured { .. }, OldToNew) => {
            "take any value and compare it in validate, or configure both machines to have the same"
        }
        (Reason::NotConfigured { .. }, NewToOld) => "configure both machines to have the same",
        (Reason::NotNullable, _) => "keep the pointer as it was; send what is new in a subsection",
        (Reason::Contradiction { .. }, _) => "write the schema again with the program whose streams it describes",
        (Reason::TooLarge, _) => "compare the parts one by one",
        (Reason::Ambiguous, _) => "put the struct last, and begin no subsection's name with that of a struct inside",
        (Reason::Missing, OldToNew) => "register it as optional: it keeps its reset state if it does not come",
        (Reason::Missing, NewToOld) => "go on sending the section",
        (Reason::NoSection, OldToNew) => {
            "keep the section, or add its old name to the new one with Sections::add_alias"
        }
        (Reason::NoSection, NewToOld) => "leave the device out of machines of the old release",
    }
}
