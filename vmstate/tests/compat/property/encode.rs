//! A naive writer.

use std::collections::VecDeque;
use std::rc::Rc;

use vmstate::schema::{Count as Allowed, Description, Field, Kind, Length};

use super::model::{Bound, Byte, Counts, Integer, Numbers, Origin, Outcomes, Place, Same, Scope, Source, Tag};
use super::model::{fields, is_plain, is_there, words};

/// A counted field: its beginning, its identity, its number of elements, whether it is a bitmap, and the source of the number.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    pub(crate) at: usize,
    pub(crate) which: usize,
    pub(crate) elements: u64,
    /// The value of the length; for a bitmap, the number of bits.
    pub(crate) number: u64,
    pub(crate) is_bitmap: bool,
    pub(crate) bound: Option<Bound>,
    /// The enclosing elements, each as counted field and index.
    pub(crate) inside: Vec<(usize, u64)>,
}

pub(crate) struct Encoder<'a> {
    parts: Vec<Scope<'a>>,
    /// The number of elements of each counted field.
    pub(crate) elements: Counts,
    /// Lists and maps whose largest number of elements is known.
    pub(crate) bounded: Vec<usize>,
    inside: Vec<(usize, u64)>,
    pub(crate) outcomes: Outcomes,
    pub(crate) bytes: Vec<Byte>,
    items: usize,
    counted: Option<usize>,
    pub(crate) counts: VecDeque<Count>,
    /// Positions of pointers, and whether they are null.
    pub(crate) pointers: VecDeque<(usize, bool)>,
    /// The number written into each integer.
    pub(crate) numbers: Numbers,
    /// False if a field has no allowed value: then nothing can be written.
    pub(crate) is_possible: bool,
}

impl<'a> Encoder<'a> {
    pub(crate) fn encode(description: &'a Description, version: u32, outcomes: Outcomes) -> Self {
        let mut encoder = Self {
            parts: vec![],
            elements: Counts::new(),
            bounded: vec![],
            inside: vec![],
            outcomes,
            bytes: vec![],
            items: 0,
            counted: None,
            counts: VecDeque::new(),
            pointers: VecDeque::new(),
            numbers: Numbers::new(),
            is_possible: true,
        };
        encoder.description(description, version, &Place::default(), false);
        encoder
    }

    fn put(&mut self, value: u8, tag: Tag, origin: &Rc<Origin>) {
        self.bytes.push(Byte { value, tag, counted: self.counted, origin: Rc::clone(origin) });
    }

    fn put_all(&mut self, values: impl IntoIterator<Item = u8>, tag: &Tag, place: &Place) {
        let origin = Rc::new(Origin { path: place.path.clone(), is_integer: false, limit: None });
        values.into_iter().for_each(|value| self.put(value, tag.clone(), &origin));
    }

    fn description(&mut self, description: &'a Description, version: u32, place: &Place, is_subsection: bool) {
        self.parts.push(Scope::new(description, place, is_subsection));
        for (field, place) in fields(description, place) {
            if is_there((field, &place), &self.parts, version, self.outcomes, &Same::new()) {
                self.field(description, field, &place);
            }
        }
        for subsection in description.subsections.iter() {
            let place = place.field(&subsection.name);
            if self.outcomes.holds("subsection", &place.path) {
                self.put_all([5, u8::try_from(subsection.name.len()).unwrap()], &Tag::Header, &place);
                self.put_all(subsection.name.bytes(), &Tag::Header, &place);
                self.put_all(subsection.version.to_be_bytes(), &Tag::Header, &place);
                self.description(subsection, subsection.version, &place, true);
            }
        }
        self.parts.pop();
    }

    fn field(&mut self, of: &Description, field: &'a Field, place: &Place) {
        let Some(integer) = Integer::of(&field.kind) else {
            return self.counted_kind(&field.kind, field.count.as_ref(), place);
        };
        let counts = of.fields.iter().filter_map(|counted| counted.count.as_ref());
        let counts = counts.filter(|count| count.length == Some(Length::Field(field.name.clone())));
        let most = counts.map(|count| count.most / count.factor.max(1)).min();
        let number = match most {
            None => self.number(&integer, place),
            Some(most) => {
                // Any value for which the number of elements may be sent.
                let first = self.outcomes.number("value", &place.path);
                let numbers = (0..=4_u64).map(|at| i128::from((first + at) % 5));
                numbers.filter(|number| *number <= most as i128).find(|number| integer.sends(*number))
            }
        };
        if let Some(number) = self.put_integer(integer, number, place)
            && let Some(part) = self.parts.last_mut()
        {
            part.note(field, Some(self.items), number);
        }
    }

    fn kind(&mut self, kind: &'a Kind, place: &Place) {
        self.counted_kind(kind, None, place);
    }

    fn counted_kind(&mut self, kind: &'a Kind, allowed: Option<&Allowed>, place: &Place) {
        if let Some(integer) = Integer::of(kind) {
            return self.integer(integer, place);
        }
        let value = self.outcomes.values(&place.path).next().unwrap();
        match kind {
            Kind::Bitmap(bits) => words(*bits, place).into_iter().for_each(|(word, place)| self.integer(word, &place)),
            Kind::Buffer(bytes) => self.put_all((0..*bytes).map(|_| value), &Tag::Raw, place),
            Kind::Unused(bytes) => self.put_all((0..*bytes).map(|_| 0), &Tag::Raw, place),
            Kind::Struct(nested) | Kind::Temporary(nested) => self.description(nested, nested.version, place, false),
            Kind::StructAt(nested, version) => self.description(nested, *version, place, false),
            Kind::Array(element, count) => {
                for index in 0..*count {
                    let inside = if is_plain(element) { place.clone() } else { place.element(index) };
                    self.kind(element, &inside);
                }
            }
            Kind::CountedBuffer => self.counted(&BYTE, allowed, place, false),
            Kind::CountedArray(element) => self.counted(element, allowed, place, false),
            Kind::CountedBitmap => self.counted(&WORD, allowed, place, true),
            Kind::Nullable(inner) => {
                let is_null = self.outcomes.holds("null", &place.path);
                self.pointers.push_back((self.bytes.len(), is_null));
                match is_null {
                    true => self.put_all([0x30], &Tag::Null, place),
                    false => self.kind(inner, place),
                }
            }
            Kind::List(element) => {
                self.list(&Tag::List, allowed, place, |encoder, _, inside| encoder.kind(element, inside));
            }
            Kind::Map(key, value) => {
                self.list(&Tag::Map, allowed, place, |encoder, at, inside| {
                    encoder.key(key, at, &inside.field("key"));
                    encoder.kind(value, &inside.field("value"));
                });
            }
            Kind::Custom(codec) => self.put_all([7, 7], &Tag::Custom(codec.to_string()), place),
            _ => {}
        }
    }

    fn number(&self, integer: &Integer, place: &Place) -> Option<i128> {
        let numbers = self.outcomes.values(&place.path).map(|value| integer.repeated(value));
        { numbers }.find(|number| integer.sends(*number))
    }

    fn integer(&mut self, integer: Integer, place: &Place) {
        let number = self.number(&integer, place);
        self.put_integer(integer, number, place);
    }

    /// Writes the number, if one may be sent.
    fn put_integer(&mut self, integer: Integer, number: Option<i128>, place: &Place) -> Option<i128> {
        self.items += 1;
        let Some(number) = number else {
            self.is_possible = false;
            return None;
        };
        if integer.is_known {
            self.numbers.entry(place.path.clone()).or_default().push(number);
        }
        let bytes = integer.bytes(number);
        let origin = Origin { path: place.path.clone(), is_integer: integer.is_known, limit: integer.limit };
        let (origin, item) = (Rc::new(origin), self.items);
        for (at, value) in (0..integer.width).zip(bytes) {
            self.put(value, Tag::Integer(item, at, integer.width), &origin);
        }
        Some(number)
    }

    /// The key of entry `at` of a map: keys are in the order of their type, each once.
    fn key(&mut self, key: &'a Kind, at: u64, place: &Place) {
        let Some(integer) = Integer::of(key) else { return self.kind(key, place) };
        let mut keys: Vec<_> = [0, 1, 2, 0xff].map(|value| integer.repeated(value)).to_vec();
        keys.retain(|key| integer.sends(*key));
        keys.sort_unstable();
        // A key that is skipped at the beginning or the end, so that each key can be the only one.
        let skipped = self.outcomes.number("key", &place.path) % 3;
        let number = keys.get(usize::try_from(at + skipped).unwrap()).copied();
        self.put_integer(integer, number, place);
    }

    fn counted(&mut self, element: &'a Kind, allowed: Option<&Allowed>, place: &Place, is_bitmap: bool) {
        let bound = Bound::of(allowed, &self.parts);
        let number = match &bound {
            Some(Bound { source: Source::Number(number, ..), factor, .. }) => {
                u64::try_from(*number).unwrap_or(0) * factor
            }
            _ => self.outcomes.count(&place.path),
        };
        self.note_count(number, allowed, place);
        // The length of a bitmap counts bits.
        let elements = if is_bitmap && bound.is_some() { number.div_ceil(64) } else { number };
        self.items += 1;
        let outer = self.counted.replace(self.items);
        let inside = self.inside.clone();
        self.counts.push_back(Count {
            at: self.bytes.len(),
            which: self.items,
            elements,
            number,
            is_bitmap,
            bound,
            inside,
        });
        let which = self.items;
        for at in 0..elements {
            self.inside.push((which, at));
            self.kind(element, &place.counted());
            self.inside.pop();
        }
        self.counted = outer;
    }

    fn note_count(&mut self, number: u64, allowed: Option<&Allowed>, place: &Place) {
        self.is_possible &= allowed.is_none_or(|allowed| number <= allowed.most as u64);
        self.elements.entry(place.path.clone()).or_default().push(number);
    }

    fn list(&mut self, tag: &Tag, allowed: Option<&Allowed>, place: &Place, element: impl Fn(&mut Self, u64, &Place)) {
        let elements = self.outcomes.count(&place.path);
        self.note_count(elements, allowed, place);
        self.items += 1;
        self.bounded.extend(allowed.map(|_| self.items));
        let outer = self.counted.replace(self.items);
        let which = self.counted;
        if *tag == Tag::Map {
            self.put_all(u32::try_from(elements).unwrap().to_be_bytes(), tag, place);
        }
        for at in 0..elements {
            self.put_all([1], tag, place);
            self.inside.extend(which.map(|which| (which, at)));
            element(self, at, &place.counted());
            self.inside.pop();
        }
        self.put_all([0], tag, place);
        self.counted = outer;
    }
}

/// The elements of counted buffers and bitmaps.
pub(crate) static BYTE: Kind = Kind::Buffer(1);
pub(crate) static WORD: Kind = Kind::Bitmap(64);
