//! Compiles a description into its program. A description that is used several times is compiled once, so a program is never
//! larger than its description.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Encoding, Form, Framing, Item, Meaning, Member, Nested, Program, Step, bitmap_size};
use crate::schema::type_name::type_name;
use crate::schema::{Description, Field, Kind, Presence, json};

/// The presence of a member that is always sent.
pub(super) static ALWAYS: Presence = Presence::Since(0);

impl<'a> Program<'a> {
    /// Compiles `description`.
    pub(crate) fn of(description: &'a Description) -> Rc<Self> {
        Compiler::default().program(description)
    }
}

/// The programs compiled so far, by the address of their description.
#[derive(Default)]
struct Compiler<'a> {
    programs: HashMap<*const Description, Rc<Program<'a>>>,
    maps: HashMap<*const Kind, Encoding<'a>>,
}

impl<'a> Compiler<'a> {
    fn program(&mut self, of: &'a Description) -> Rc<Program<'a>> {
        let place = std::ptr::from_ref(of);
        if let Some(known) = self.programs.get(&place) {
            return Rc::clone(known);
        }
        let mut steps: Vec<Step<'a>> = of.fields.iter().map(|field| self.step(field)).collect();
        steps.push(Step::Subsections(of.subsections.iter().map(|subsection| self.program(subsection)).collect()));
        let program = Rc::new(Program {
            name: &of.name,
            oldest: of.minimum_version,
            newest: of.version,
            hooks: of.hooks.as_deref(),
            steps,
        });
        self.programs.insert(place, Rc::clone(&program));
        program
    }

    fn step(&mut self, field: &'a Field) -> Step<'a> {
        let Field { name, kind, presence, .. } = field;
        if *kind == Kind::Check {
            return Step::Check { name, is_predicate: presence.is_decided() };
        }
        let (count, conversion) = (field.count.as_ref(), field.conversion.as_deref());
        Step::Member(Member { presence, count, conversion, ..self.always(name, kind) })
    }

    /// A member with default properties.
    fn always(&mut self, name: &'a str, kind: &'a Kind) -> Member<'a> {
        let (name, type_name, encoding) = (name.into(), type_name(kind), self.encoding(kind));
        Member { name, type_name, presence: &ALWAYS, count: None, conversion: None, encoding }
    }

    fn encoding(&mut self, kind: &'a Kind) -> Encoding<'a> {
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
            Kind::Limited(inner, limit) => match self.encoding(inner) {
                Encoding::Item(item) => Encoding::Item(Item { limit: Some(limit), ..item }),
                other => other,
            },
            Kind::Struct(nested) => inside(self.program(nested), nested.version, Form::Object),
            Kind::StructAt(nested, version) => inside(self.program(nested), *version, Form::Inline),
            Kind::Temporary(nested) => inside(self.program(nested), nested.version, Form::Inline),
            Kind::Nullable(inner) => Encoding::Nullable(self.encoding(inner).into()),
            Kind::Array(element, count) => self.repeat(Framing::Fixed(*count as u64), element),
            Kind::CountedArray(element) => self.repeat(Framing::Counted, element),
            Kind::List(element) => self.repeat(Framing::List, element),
            Kind::Map(key, value) => {
                let place = std::ptr::from_ref(kind);
                if let Some(known) = self.maps.get(&place) {
                    return known.clone();
                }
                let steps = [("key", key), ("value", value)].map(|(name, kind)| Step::Member(self.always(name, kind)));
                let entry = Program { name: "entry", oldest: 0, newest: 0, hooks: None, steps: steps.into() };
                let map = Encoding::Repeat(Framing::Map, inside(entry.into(), 0, Form::Entry).into());
                self.maps.insert(place, map.clone());
                map
            }
            // An array of checks, which has no bytes.
            Kind::Check => fixed(Meaning::Raw, 0),
        }
    }

    fn repeat(&mut self, framing: Framing, element: &'a Kind) -> Encoding<'a> {
        Encoding::Repeat(framing, self.encoding(element).into())
    }
}

const fn item(meaning: Meaning<'_>, size: Option<u64>) -> Encoding<'_> {
    Encoding::Item(Item { meaning, size, limit: None })
}

const fn inside(program: Rc<Program<'_>>, version: u32, form: Form) -> Encoding<'_> {
    Encoding::Struct(Nested { program, version, form, size: None })
}
