//! Random descriptions, and random changes that a developer may make to them.

use std::collections::VecDeque;

use vmstate::schema::{Count, Description, Field, Kind, Length, Limit, MaybeStatic, Presence};

use super::model::{Integer, is_counted};

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
            19 if depth > 0 => match self.below(4) {
                0 => Kind::List(self.variants(0).into()),
                1 => Kind::Array(self.variants(0).into(), 2),
                _ => self.variants(depth - 1),
            },
            _ => self.plain(),
        }
    }

    /// A section of enums, with other fields around them.
    pub(crate) fn enums(&mut self) -> Description {
        let mut fields = vec![Field::new("first".into(), self.plain(), Presence::Since(0))];
        for name in &["f0", "f1"][..1 + self.below(2)] {
            let kind = match self.below(5) {
                0 => Kind::List(self.variants(0).into()),
                1 => Kind::Array(self.variants(0).into(), 2),
                2 => Kind::CountedArray(self.variants(0).into()),
                _ => self.variants(1),
            };
            fields.push(Field::new((*name).into(), kind, Presence::Since(0)));
        }
        fields.push(self.field("last", 0));
        Description::new("d".into(), 1, 1, fields.into(), vec![].into())
    }

    /// Changes the enums of a section as a developer may.
    pub(crate) fn revise_all(&mut self, old: &Description) -> Description {
        let mut fields = old.fields.to_vec();
        for _ in 0..1 + self.below(2) {
            let at = 1 + self.below(fields.len() - 2);
            fields[at].kind = match &fields[at].kind {
                Kind::List(element) => Kind::List(self.revised(element).into()),
                Kind::Array(element, count) => Kind::Array(self.revised(element).into(), *count),
                Kind::CountedArray(element) => Kind::CountedArray(self.revised(element).into()),
                kind => self.revised(kind),
            };
        }
        if self.below(4) == 3 {
            // In one of the two releases, the field is no longer an enum.
            let at = self.below(fields.len());
            fields[at].kind = self.kind(1);
        }
        Description::new("d".into(), 1, 1, fields.into(), vec![].into())
    }

    fn revised(&mut self, kind: &Kind) -> Kind {
        match kind {
            Kind::Struct(of) => Kind::Struct(self.revise(of).into()),
            other => other.clone(),
        }
    }

    /// An enum: a tag, then the fields of each variant.
    fn variants(&mut self, depth: usize) -> Kind {
        let integer = self.integer();
        let mut numbers: Vec<_> = (0..=1 + self.below(2)).map(|_| self.one(&NUMBERS[..4])).collect();
        numbers.dedup();
        let tag = Kind::Limited(integer.into(), Limit::OneOf(numbers.clone().into()));
        let mut fields = vec![Field::new("tag".into(), tag, Presence::Since(0))];
        for number in numbers {
            fields.extend((self.below(4) > 0).then(|| self.variant(number, depth)));
        }
        Kind::Struct(Description::new("Mode".into(), 1, 1, fields.into(), vec![].into()).into())
    }

    fn variant(&mut self, number: i128, depth: usize) -> Field {
        let kind = match self.below(3) {
            0 => self.structure(depth),
            _ => {
                let fields: Vec<_> = (0..=self.below(2)).map(|at| format!("{at}")).collect();
                let fields: Vec<_> = fields.iter().map(|name| self.field(name, depth)).collect();
                Kind::Struct(Description::new("Variant".into(), 1, 1, fields.into(), vec![].into()).into())
            }
        };
        Field::new(number.to_string().as_str().into(), kind, Presence::Tag(number))
    }

    /// Changes an enum as a developer may.
    fn revise(&mut self, of: &Description) -> Description {
        let mut fields = of.fields.to_vec();
        let numbers = match fields.first().map(|tag| &tag.kind) {
            Some(Kind::Limited(_, Limit::OneOf(numbers))) => numbers.to_vec(),
            _ => vec![],
        };
        let at = 1 + self.below(fields.len().max(2) - 1);
        let mut renumbered = numbers.clone();
        match self.below(6) {
            0 | 1 => {
                let number = self.one(&NUMBERS[..4]);
                if !numbers.contains(&number) {
                    renumbered.push(number);
                    fields.push(self.variant(number, 0));
                }
            }
            2 if at < fields.len() => {
                let gone = fields.remove(at).presence;
                renumbered.retain(|number| gone != Presence::Tag(*number));
            }
            3 if at < fields.len() => fields[at].kind = self.other_kind(&fields[at].kind),
            4 if at < fields.len() => fields[at].presence = Presence::Tag(self.one(&NUMBERS[..4])),
            _ => fields[1..].reverse(),
        }
        if let Some(Kind::Limited(inner, _)) = fields.first().map(|tag| tag.kind.clone()) {
            fields[0].kind = Kind::Limited(inner, Limit::OneOf(renumbered.into()));
        }
        Description::new(of.name.clone(), of.version, of.minimum_version, fields.into(), of.subsections.clone())
    }

    fn structure(&mut self, depth: usize) -> Kind {
        let name = self.one(&["regs", "timer", "regs/x", "d/a"]);
        let subsections = ["regs/x", "regs/y"][..self.below(3)].to_vec();
        let nested = self.description(name, 'f', depth, &subsections);
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

    /// The count of a field of `kind`; its length is one of the fields before it, if a suitable one exists.
    fn count(&mut self, kind: &Kind, before: &[Field]) -> Option<Count> {
        if !is_counted(kind) || self.below(4) == 3 {
            return None;
        }
        let most = 1 + self.below(4);
        if matches!(kind, Kind::List(_) | Kind::Map(..)) {
            return Some(Count::new(None, 1, most, false));
        }
        let fitting: Vec<_> = before.iter().filter(|field| Integer::of(&field.kind).is_some()).collect();
        let length = match fitting.get(self.below(fitting.len() + 1)) {
            Some(field) => Length::Field(field.name.clone()),
            None => Length::Machine("n".into()),
        };
        Some(Count::new(Some(length), self.one(&[1, 1, 1, 2]), most, false))
    }

    /// Changes the length of a field, or the limit on its elements.
    fn recount(&mut self, fields: &mut [Field]) {
        let counted: Vec<_> = (0..fields.len()).filter(|at| fields[*at].count.is_some()).collect();
        let Some(at) = counted.get(self.below(counted.len())).copied() else { return };
        let (before, rest) = fields.split_at_mut(at);
        match (self.below(5), &mut rest[0].count) {
            (0, count) => *count = self.count(&rest[0].kind, before),
            (1, Some(count)) => {
                // Changes the presence of the length.
                let Some(Length::Field(name)) = &count.length else { return };
                let name = name.clone();
                if let Some(length) = before.iter_mut().find(|field| field.name == name) {
                    length.presence = match self.below(2) {
                        0 => Presence::Since(self.version(4)),
                        _ => Presence::If(self.one(&PREDICATES).into()),
                    };
                }
            }
            (_, Some(count)) => count.most = 1 + self.below(4),
            _ => {}
        }
    }

    /// Creates a description; `prefix` begins the fields' names, so that fields of a subsection differ from those around it.
    fn description(&mut self, name: &str, prefix: char, depth: usize, subsections: &[&str]) -> Description {
        let mut fields: Vec<Field> = Vec::new();
        for index in 0..=self.below(4) {
            let mut field = self.field(&format!("{prefix}{index}"), depth);
            field.count = self.count(&field.kind, &fields);
            fields.push(field);
        }
        let version = 1 + self.version(3);
        let minimum = version - self.version(2).min(version - 1);
        let subsections: Vec<_> = subsections
            .iter()
            .map(|name| {
                let nested: &[&str] = if depth > 0 && self.below(4) == 1 { &["d/a/x"] } else { &[] };
                self.description(name, char::from(prefix as u8 + 1), 0, nested)
            })
            .collect();
        Description::new(name.into(), version, minimum, fields.into(), subsections.into())
    }

    pub(crate) fn section(&mut self) -> Description {
        let names = ["d/a", "d/b", "d/ab"][..self.below(4)].to_vec();
        self.description("d", 'f', 2, &names)
    }

    pub(crate) fn evolve(&mut self, old: &Description) -> Description {
        let mut new = old.clone();
        for _ in 0..self.below(4) {
            self.change(&mut new);
        }
        if self.below(2) == 1 {
            // Predicates inside of a struct refer to the struct's name.
            let mut fields = new.fields.to_vec();
            let holders = fields.iter_mut().filter(|field| holds_predicates(&field.kind));
            holders.for_each(|field| field.name = format!("{}_renamed", &*field.name).as_str().into());
            new.fields = MaybeStatic::from(fields);
        }
        new
    }

    fn change(&mut self, new: &mut Description) {
        let mut fields = new.fields.to_vec();
        let mut subsections = new.subsections.to_vec();
        let at = self.below(fields.len());
        match self.below(42) {
            0 => fields.push(self.field("appended", 1)),
            1 if !fields.is_empty() => drop(fields.remove(at)),
            2 if !fields.is_empty() => fields[at].kind = self.kind(1),
            3 if !fields.is_empty() => {
                let new: MaybeStatic<str> = self.one(&["renamed", "moved.f1", "f0.f0", "f1.f0"]).into();
                let renamed = std::mem::replace(&mut fields[at].name, new.clone());
                for count in fields.iter_mut().filter_map(|field| field.count.as_mut()) {
                    if count.length == Some(Length::Field(renamed.clone())) {
                        count.length = Some(Length::Field(new.clone()));
                    }
                }
            }
            4 if !fields.is_empty() => fields[at].presence = Presence::If(self.one(&PREDICATES).into()),
            5 | 6 if !fields.is_empty() => {
                let moved: Vec<_> = fields.drain(at..).collect();
                // Moved fields see another version; their predicates stay the same.
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
            10 => subsections.push(self.description("d/new", 'n', 0, &[])),
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
            31..=38 => self.recount(&mut fields),
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
        // A field that is not an integer cannot be a length, and one that is not counted has no length.
        let is_length = |name: &MaybeStatic<str>| {
            fields.iter().filter(|field| field.name == *name).all(|field| Integer::of(&field.kind).is_some())
        };
        let fits = |field: &Field| match field.count.as_ref().map(|count| &count.length) {
            Some(None) => matches!(field.kind, Kind::List(_) | Kind::Map(..)),
            Some(Some(Length::Field(name))) => {
                is_length(name) && is_counted(&field.kind) && !matches!(field.kind, Kind::List(_) | Kind::Map(..))
            }
            _ => is_counted(&field.kind) && !matches!(field.kind, Kind::List(_) | Kind::Map(..)),
        };
        let unfit: Vec<_> = (0..fields.len()).filter(|at| !fits(&fields[*at])).collect();
        unfit.into_iter().for_each(|at| fields[at].count = None);
        new.fields = MaybeStatic::from(fields);
        new.subsections = MaybeStatic::from(subsections);
    }

    /// Changes the type slightly.
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
            Kind::Map(key, value) => match (self.below(2), &**key) {
                (0, Kind::Unsigned(width)) => Kind::Map(Kind::Signed(*width).into(), value.clone()),
                (0, Kind::Signed(width)) => Kind::Map(Kind::Unsigned(*width).into(), value.clone()),
                _ => Kind::Map(key.clone(), self.other_kind(value).into()),
            },
            Kind::Struct(nested) if has_variants(nested) && self.below(4) > 0 => {
                Kind::Struct(self.revise(nested).into())
            }
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

fn has_variants(of: &Description) -> bool {
    of.fields.iter().any(|field| matches!(field.presence, Presence::Tag(_)))
}

/// True if a struct of the field, or of its elements, has a named predicate.
fn holds_predicates(kind: &Kind) -> bool {
    match kind {
        Kind::Struct(of) | Kind::StructAt(of, _) | Kind::Temporary(of) => {
            let asks = |field: &Field| matches!(&field.presence, Presence::If(name) if !name.is_empty());
            of.fields.iter().any(asks)
        }
        Kind::Array(of, _) | Kind::CountedArray(of) | Kind::List(of) => holds_predicates(of),
        _ => false,
    }
}
