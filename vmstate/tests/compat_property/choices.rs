//! Random descriptions, and what a developer may do to them.

use std::collections::VecDeque;

use vmstate::schema::{Description, Field, Kind, Limit, Presence, Shared};

/// Random choices; zero is the simplest.
pub(crate) struct Choices(pub(crate) VecDeque<u16>);

const PREDICATES: [&str; 4] = ["p", "q", "r", ""];
const NUMBERS: [i128; 9] = [0, 1, 2, 0x101, 0x202, 0x0101_0101, 255, -1, 300];

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.0.pop_front().unwrap_or(0)) % bound.max(1)
    }

    fn version(&mut self, bound: usize) -> u32 {
        u32::try_from(self.below(bound)).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn integer(&mut self) -> Kind {
        let width = self.one(&[1, 1, 4, 2, 8]);
        if self.below(3) == 1 { Kind::Signed(width) } else { Kind::Unsigned(width) }
    }

    fn limit(&mut self) -> Limit {
        match self.below(6) {
            0 => Limit::NotZero,
            1 => Limit::Equal,
            2 => Limit::AtMostCurrent,
            3 => {
                let (a, b) = (self.one(&NUMBERS), self.one(&NUMBERS));
                Limit::Within(a.min(b), a.max(b))
            }
            _ => {
                let count = 1 + self.below(4);
                Limit::OneOf((0..count).map(|_| self.one(&NUMBERS)).collect::<Vec<_>>().into())
            }
        }
    }

    fn plain(&mut self) -> Kind {
        match self.below(18) {
            0..=4 => self.integer(),
            5 => Kind::Bool,
            6..=11 => Kind::Limited(self.integer().into(), self.limit()),
            12 => Kind::Timer,
            13 => Kind::Double,
            14 => Kind::Bitmap(self.one(&[64, 1, 10, 128, 60, 65, 130])),
            15 => Kind::Custom(self.one(&["size 1", "size 4", "size 6"]).into()),
            16 => Kind::Buffer(1 + self.below(4)),
            _ => Kind::Unused(1 + self.below(5)),
        }
    }

    fn kind(&mut self, depth: usize) -> Kind {
        match self.below(20) {
            0..=7 => self.plain(),
            8 => Kind::Array(self.plain().into(), self.below(4)),
            9 => Kind::CountedArray(self.plain().into()),
            10 => Kind::CountedBuffer,
            11 => Kind::CountedBitmap,
            12 => Kind::Custom(self.one(&["virtio", "string"]).into()),
            13 => Kind::Nullable(self.plain().into()),
            14 => Kind::Array(Kind::Nullable(self.plain().into()).into(), 2),
            15 if depth > 0 => Kind::Array(self.structure(depth - 1).into(), self.below(3)),
            16 if depth > 0 => match self.below(3) {
                0 => Kind::List(self.structure(0).into()),
                1 => Kind::List(self.plain().into()),
                _ => Kind::Map(self.integer().into(), self.structure(0).into()),
            },
            17 if depth > 0 => Kind::CountedArray(self.structure(0).into()),
            18 if depth > 0 => self.structure(depth - 1),
            _ => self.plain(),
        }
    }

    fn structure(&mut self, depth: usize) -> Kind {
        let name = self.one(&["regs", "timer", "regs/x", "d/a"]);
        let subsections = ["regs/x", "regs/y"][..self.below(3)].to_vec();
        let nested = self.description(name, depth, &subsections);
        match self.below(5) {
            4 => Kind::Temporary(nested.into()),
            3 => {
                let version = nested.minimum_version + self.version(3);
                Kind::StructAt(nested.into(), version)
            }
            _ => Kind::Struct(nested.into()),
        }
    }

    fn field(&mut self, name: &str, depth: usize) -> Field {
        let kind = self.kind(depth);
        let presence = match self.below(6) {
            0..=3 => Presence::Since(0),
            4 => Presence::Since(self.version(4)),
            _ => Presence::If(self.one(&PREDICATES).into()),
        };
        Field::new(name.into(), kind, presence)
    }

    fn description(&mut self, name: &str, depth: usize, subsections: &[&str]) -> Description {
        let fields: Vec<_> = (0..=self.below(4)).map(|i| self.field(&format!("f{i}"), depth)).collect();
        let version = 1 + self.version(3);
        let minimum = version - self.version(2).min(version - 1);
        let subsections: Vec<_> = subsections
            .iter()
            .map(|name| {
                let nested: &[&str] = if depth > 0 && self.below(4) == 1 { &["d/a/x"] } else { &[] };
                self.description(name, 0, nested)
            })
            .collect();
        Description::new(name.into(), version, minimum, fields.into(), subsections.into())
    }

    pub(crate) fn section(&mut self) -> Description {
        let names = ["d/a", "d/b", "d/ab"][..self.below(4)].to_vec();
        self.description("d", 2, &names)
    }

    pub(crate) fn evolve(&mut self, old: &Description) -> Description {
        let mut new = old.clone();
        for _ in 0..self.below(4) {
            self.change(&mut new);
        }
        new
    }

    fn change(&mut self, new: &mut Description) {
        let mut fields = new.fields.to_vec();
        let mut subsections = new.subsections.to_vec();
        let at = self.below(fields.len());
        match self.below(34) {
            0 => fields.push(self.field("appended", 1)),
            1 if !fields.is_empty() => drop(fields.remove(at)),
            2 if !fields.is_empty() => fields[at].kind = self.kind(1),
            3 if !fields.is_empty() => fields[at].name = "renamed".into(),
            4 if !fields.is_empty() => fields[at].presence = Presence::If(self.one(&PREDICATES).into()),
            5 | 6 if !fields.is_empty() => {
                let moved: Vec<_> = fields.drain(at..).collect();
                // Moved fields see another version; a predicate is as it was.
                let nested = Description::new("moved".into(), new.version, 1, moved.into(), vec![].into());
                fields.push(Field::new("moved".into(), Kind::Struct(nested.into()), Presence::Since(0)));
            }
            7 => {
                new.version += 1;
                let mut field = self.field("added", 1);
                field.presence = Presence::Since(new.version);
                fields.push(field);
            }
            8 => new.minimum_version = new.version,
            9 if !fields.is_empty() => {
                let other = self.below(fields.len());
                fields.swap(at, other);
            }
            10 => subsections.push(self.description("d/new", 0, &[])),
            11 if !subsections.is_empty() => drop(subsections.remove(0)),
            12 => subsections.reverse(),
            13 if !subsections.is_empty() => subsections[0].version += 1,
            14 if !subsections.is_empty() => self.change(&mut subsections[0]),
            15 if !subsections.is_empty() => subsections[0].name = "d/renamed".into(),
            16..=28 if !fields.is_empty() => fields[at].kind = self.other_kind(&fields[at].kind),
            29 if !fields.is_empty() => {
                // The same fields, one level up.
                if let (Kind::Struct(nested), Presence::Since(0)) = (&fields[at].kind.clone(), &fields[at].presence) {
                    fields.splice(at..=at, nested.fields.iter().cloned());
                }
            }
            30 if !fields.is_empty() => fields[at].presence = Presence::Since(self.version(4)),
            _ if !fields.is_empty() => {
                let bytes = match &fields[at].kind {
                    Kind::Unsigned(width) | Kind::Signed(width) => usize::from(*width),
                    Kind::Buffer(bytes) => *bytes,
                    Kind::Timer | Kind::Double => 8,
                    _ => 1,
                };
                fields[at].kind = Kind::Unused(bytes);
            }
            _ => {}
        }
        new.fields = Shared::from(fields);
        new.subsections = Shared::from(subsections);
    }

    /// A change of the type that is nearly none.
    fn other_kind(&mut self, kind: &Kind) -> Kind {
        match kind {
            Kind::Limited(inner, Limit::OneOf(values)) => {
                let mut values = values.to_vec();
                match self.below(2) {
                    1 => values.push(self.one(&NUMBERS)),
                    _ => values.truncate(values.len().saturating_sub(1)),
                }
                Kind::Limited(inner.clone(), Limit::OneOf(values.into()))
            }
            Kind::Limited(inner, _) => match self.below(3) {
                0 => (**inner).clone(),
                _ => Kind::Limited(inner.clone(), self.limit()),
            },
            Kind::Unsigned(_) | Kind::Signed(_) => match self.below(4) {
                0 => Kind::Nullable(kind.clone().into()),
                _ => Kind::Limited(kind.clone().into(), self.limit()),
            },
            Kind::Nullable(inner) => (**inner).clone(),
            Kind::List(element) => match self.below(2) {
                0 => Kind::List(self.other_kind(element).into()),
                _ => Kind::CountedArray(element.clone()),
            },
            Kind::Array(element, count) => Kind::Array(self.other_kind(element).into(), *count),
            Kind::CountedArray(element) => Kind::CountedArray(self.other_kind(element).into()),
            Kind::Map(key, value) => Kind::Map(key.clone(), self.other_kind(value).into()),
            Kind::Struct(nested) | Kind::StructAt(nested, _) | Kind::Temporary(nested) => {
                let mut changed = (**nested).clone();
                if self.below(2) == 1 {
                    self.change(&mut changed);
                }
                let version = changed.minimum_version + self.version(3);
                if self.below(2) == 1 { Kind::StructAt(changed.into(), version) } else { Kind::Struct(changed.into()) }
            }
            Kind::Double => Kind::Timer,
            Kind::Bitmap(_) => Kind::Bitmap(self.one(&[9, 63, 64, 127])),
            Kind::Custom(_) => self.integer(),
            Kind::Bool => Kind::Unsigned(1),
            _ => Kind::Bool,
        }
    }
}
