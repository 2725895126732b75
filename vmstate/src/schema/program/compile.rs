//! From a description to its program.

use super::{Encoding, Form, Framing, Item, Meaning, Member, Nested, Program, Step, bitmap_size};
use crate::schema::type_name::type_name;
use crate::schema::{Description, Field, Kind, Presence, json};

/// The presence of what is always there.
pub(super) static ALWAYS: Presence = Presence::Since(0);

impl<'a> Program<'a> {
    /// What `description` has on the wire.
    pub(crate) fn of(description: &'a Description) -> Self {
        let mut steps: Vec<Step<'a>> = description.fields.iter().map(step).collect();
        steps.push(Step::Subsections(description.subsections.iter().map(Self::of).collect()));
        Self { name: &description.name, oldest: description.minimum_version, newest: description.version, steps }
    }
}

fn step(field: &Field) -> Step<'_> {
    match field.kind {
        Kind::Check => Step::Check { is_predicate: matches!(field.presence, Presence::If(_)) },
        _ => member(&field.name, &field.kind, &field.presence),
    }
}

fn member<'a>(name: &'a str, kind: &'a Kind, presence: &'a Presence) -> Step<'a> {
    Step::Member(Member { name: name.into(), type_name: type_name(kind), presence, encoding: encoding(kind) })
}

fn encoding(kind: &Kind) -> Encoding<'_> {
    let fixed = |meaning, size| item(meaning, Some(size));
    match kind {
        Kind::Bool => fixed(Meaning::Bool, 1),
        Kind::Unsigned(width) => fixed(Meaning::Unsigned, (*width).into()),
        Kind::Signed(width) => fixed(Meaning::Signed, (*width).into()),
        Kind::Timer => fixed(Meaning::Timer, 8),
        Kind::Double => fixed(Meaning::Double, 8),
        Kind::Buffer(size) => fixed(Meaning::Raw, *size as u64),
        Kind::CountedBuffer => item(Meaning::Raw, None),
        Kind::Unused(size) => fixed(Meaning::Unused, *size as u64),
        Kind::Bitmap(bits) => fixed(Meaning::Bitmap(Some(*bits as u64)), bitmap_size(*bits as u64)),
        Kind::CountedBitmap => item(Meaning::Bitmap(None), None),
        Kind::Custom(name) => match json::opaque_size(kind) {
            None => item(Meaning::Codec(name), None),
            Some(size) => item(Meaning::Opaque(name), Some(size).filter(|size| *size > 0)),
        },
        Kind::Limited(inner, _) => encoding(inner),
        Kind::Struct(nested) => inside(Program::of(nested), nested.version, Form::Object),
        Kind::StructAt(nested, version) => inside(Program::of(nested), *version, Form::Inline),
        Kind::Temporary(nested) => inside(Program::of(nested), nested.version, Form::Inline),
        Kind::Nullable(inner) => Encoding::Nullable(encoding(inner).into()),
        Kind::Array(element, count) => repeat(Framing::Fixed(*count as u64), encoding(element)),
        Kind::CountedArray(element) => repeat(Framing::Counted, encoding(element)),
        Kind::List(element) => repeat(Framing::List, encoding(element)),
        Kind::Map(key, value) => {
            let steps = vec![member("key", key, &ALWAYS), member("value", value, &ALWAYS)];
            let entry = Program { name: "entry", oldest: 0, newest: 0, steps };
            repeat(Framing::Map, inside(entry, 0, Form::Entry))
        }
        // Only an array of checks, which has no bytes either.
        Kind::Check => fixed(Meaning::Raw, 0),
    }
}

const fn item(meaning: Meaning<'_>, size: Option<u64>) -> Encoding<'_> {
    Encoding::Item(Item { meaning, size })
}

const fn inside(program: Program<'_>, version: u32, form: Form) -> Encoding<'_> {
    Encoding::Struct(Nested { program, version, form, size: None })
}

fn repeat(count: Framing, element: Encoding<'_>) -> Encoding<'_> {
    Encoding::Repeat(count, element.into())
}
