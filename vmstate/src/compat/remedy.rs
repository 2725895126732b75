//! What to do instead of a change that breaks.

use super::verdict::{Direction, Reason};

pub(super) fn of(reason: &Reason, direction: Direction) -> &'static str {
    use Direction::{NewToOld, OldToNew};
    match (reason, direction) {
        (Reason::TooNew { .. }, NewToOld) => {
            "do not raise the version: put what is new into a subsection that is sent only when needed"
        }
        (Reason::TooNew { .. }, OldToNew) => "do not lower a version that was released",
        (Reason::TooOld { .. }, OldToNew) => "keep minimum_version as it was while such streams may come",
        (Reason::TooOld { .. }, NewToOld) => "do not lower the version below what the old release takes",
        (Reason::NotSent, OldToNew) => {
            "put the new field into a subsection, or raise the version and give it since = that version"
        }
        (Reason::NotSent, NewToOld) => "keep its bytes: put Unused of the same size in its place",
        (Reason::NotRead, OldToNew) => "keep its bytes: put Unused of the same size in its place",
        (Reason::NotRead, NewToOld) => "put the new field into a subsection that is sent only when needed",
        (Reason::OtherItem { .. }, _) => {
            "keep the order and the wire type; new fields go into a subsection, removed ones become Unused"
        }
        (Reason::OtherCount, _) => "keep length and elements as they were; send more in a subsection",
        (Reason::OtherLength, _) => "go on counting the elements by the same field",
        (Reason::LengthNotSent, _) => "give the array the `since` or `exists` of its length",
        (Reason::TooMany { .. }, OldToNew) => "keep `max`, and an array's room, as large as they were",
        (Reason::TooMany { .. }, NewToOld) => {
            "send more elements than the old release takes in a subsection that is sent only when needed"
        }
        (Reason::OtherOrder, _) => "keep the type of the key",
        (Reason::OtherCodec, _) => "keep the codec and the name of its type",
        (Reason::UnknownSubsection, OldToNew) => "keep the subsection, if only to read it",
        (Reason::UnknownSubsection, NewToOld) => "send it only when needed, and never for a machine of the old release",
        (Reason::NotTaken { .. }, OldToNew) => "go on taking what was written, and map it after the load",
        (Reason::NotTaken { .. }, NewToOld) => {
            "send what the old release does not take in a subsection that is sent only when needed"
        }
        (Reason::NotNullable, _) => "keep the pointer as it was; send what is new in a subsection",
        (Reason::TooLarge, _) => "compare the parts one by one",
        (Reason::Ambiguous, _) => "put the struct last, and begin no subsection's name with that of a struct inside",
        (Reason::Missing, OldToNew) => "register it as optional: it keeps its reset state if it does not come",
        (Reason::Missing, NewToOld) => "go on sending the section",
        (Reason::NoSection, OldToNew) => "keep the section, or register its new name with the old one as alias",
        (Reason::NoSection, NewToOld) => "leave the device out of machines of the old release",
    }
}
