//! The writer.

use std::collections::VecDeque;
use std::rc::Rc;

use vmstate::schema::{Description, Kind};

use crate::model::{Byte, Integer, Numbers, Origin, Outcomes, Place, Tag, fields, is_plain, words};

/// Where a counted field begins, which it is, how many elements it has, and if it is a bitmap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) at: usize,
    pub(crate) which: usize,
    pub(crate) elements: u64,
    pub(crate) is_bitmap: bool,
}

pub(crate) struct Encoder {
    pub(crate) outcomes: Outcomes,
    pub(crate) bytes: Vec<Byte>,
    items: usize,
    counted: Option<usize>,
    pub(crate) counts: VecDeque<Count>,
    /// Where pointers are, and if they are null.
    pub(crate) pointers: VecDeque<(usize, bool)>,
    /// What was written into each integer.
    pub(crate) numbers: Numbers,
    /// False if no value is allowed in some field: nothing is ever written.
    pub(crate) is_possible: bool,
}

impl Encoder {
    pub(crate) fn encode(description: &Description, version: u32, outcomes: Outcomes) -> Self {
        let mut encoder = Self {
            outcomes,
            bytes: vec![],
            items: 0,
            counted: None,
            counts: VecDeque::new(),
            pointers: VecDeque::new(),
            numbers: Numbers::new(),
            is_possible: true,
        };
        encoder.description(description, version, &Place::default());
        encoder
    }

    fn put(&mut self, value: u8, tag: Tag, origin: &Rc<Origin>) {
        self.bytes.push(Byte { value, tag, counted: self.counted, origin: Rc::clone(origin) });
    }

    fn put_all(&mut self, values: impl IntoIterator<Item = u8>, tag: &Tag, place: &Place) {
        let origin = Rc::new(Origin { path: place.path.clone(), is_integer: false, limit: None });
        values.into_iter().for_each(|value| self.put(value, tag.clone(), &origin));
    }

    fn description(&mut self, description: &Description, version: u32, place: &Place) {
        for (field, place) in fields(description, version, place, self.outcomes) {
            self.kind(&field.kind, &place);
        }
        for subsection in description.subsections.iter() {
            let place = place.field(&subsection.name);
            if self.outcomes.holds("subsection", &place.path) {
                self.put_all([5, u8::try_from(subsection.name.len()).unwrap()], &Tag::Header, &place);
                self.put_all(subsection.name.bytes(), &Tag::Header, &place);
                self.put_all(subsection.version.to_be_bytes(), &Tag::Header, &place);
                self.description(subsection, subsection.version, &place);
            }
        }
    }

    fn kind(&mut self, kind: &Kind, place: &Place) {
        if let Some(integer) = Integer::of(kind) {
            return self.integer(integer, place);
        }
        let value = self.outcomes.values(&place.path).next().unwrap();
        match kind {
            Kind::Bitmap(bits) => words(*bits, place).into_iter().for_each(|(word, place)| self.integer(word, &place)),
            Kind::Buffer(bytes) => self.put_all((0..*bytes).map(|_| value), &Tag::Raw, place),
            Kind::Unused(bytes) => self.put_all((0..*bytes).map(|_| 0), &Tag::Raw, place),
            Kind::Struct(nested) | Kind::Temporary(nested) => self.description(nested, nested.version, place),
            Kind::StructAt(nested, version) => self.description(nested, *version, place),
            Kind::Array(element, count) => {
                for index in 0..*count {
                    let inside = if is_plain(element) { place.clone() } else { place.element(index) };
                    self.kind(element, &inside);
                }
            }
            Kind::CountedBuffer => self.counted(&Kind::Buffer(1), place, false),
            Kind::CountedArray(element) => self.counted(element, place, false),
            Kind::CountedBitmap => self.counted(&Kind::Bitmap(64), place, true),
            Kind::Nullable(inner) => {
                let is_null = self.outcomes.holds("null", &place.path);
                self.pointers.push_back((self.bytes.len(), is_null));
                match is_null {
                    true => self.put_all([0x30], &Tag::Null, place),
                    false => self.kind(inner, place),
                }
            }
            Kind::List(element) => {
                self.list(&Tag::List, place, |encoder, inside| encoder.kind(element, inside));
            }
            Kind::Map(key, value) => {
                self.list(&Tag::Map, place, |encoder, inside| {
                    encoder.kind(key, &inside.field("key"));
                    encoder.kind(value, inside);
                });
            }
            Kind::Custom(codec) => self.put_all([7, 7], &Tag::Custom(codec.to_string()), place),
            _ => {}
        }
    }

    fn integer(&mut self, integer: Integer, place: &Place) {
        self.items += 1;
        let value = self.outcomes.values(&place.path).find(|value| integer.sends(integer.repeated(*value)));
        let Some(value) = value else {
            self.is_possible = false;
            return;
        };
        if integer.is_known {
            self.numbers.entry(place.path.clone()).or_default().push(integer.repeated(value));
        }
        let origin = Origin { path: place.path.clone(), is_integer: integer.is_known, limit: integer.limit };
        let (origin, item) = (Rc::new(origin), self.items);
        (0..integer.width).for_each(|at| self.put(value, Tag::Integer(item, at, integer.width), &origin));
    }

    fn counted(&mut self, element: &Kind, place: &Place, is_bitmap: bool) {
        let elements = self.outcomes.count(&place.path);
        self.items += 1;
        let outer = self.counted.replace(self.items);
        self.counts.push_back(Count { at: self.bytes.len(), which: self.items, elements, is_bitmap });
        (0..elements).for_each(|_| self.kind(element, &place.counted()));
        self.counted = outer;
    }

    fn list(&mut self, tag: &Tag, place: &Place, element: impl Fn(&mut Self, &Place)) {
        let elements = self.outcomes.count(&place.path);
        self.items += 1;
        let outer = self.counted.replace(self.items);
        if *tag == Tag::Map {
            self.put_all(u32::try_from(elements).unwrap().to_be_bytes(), tag, place);
        }
        for _ in 0..elements {
            self.put_all([1], tag, place);
            element(self, &place.counted());
        }
        self.put_all([0], tag, place);
        self.counted = outer;
    }
}
