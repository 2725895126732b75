//! Checks whether an older release accepts the values that are sent to it, by decoding the bytes as that release's schema says.
//!
//! The check ends where only the release's own code knows the layout of what follows: at a predicate, a hand-written codec, a
//! byte that may be a null pointer, a length that is not on the wire. Values after such a place are checked by the release when
//! it loads.

use std::collections::BTreeMap;

use crate::codec::Reader;
use crate::codec::mark::{MORE, NULL};
use crate::error::{Error, ErrorKind};
use crate::schema::program::{Encoding, Framing, Item, Meaning, Member, Program, Step, bitmap_size};
use crate::schema::{Count, Description, Length, Limit, Presence};

/// The first value of a section written at `version` that a load by `there` refuses, as an error that names its field.
pub(super) fn refused_value(bytes: &[u8], there: &Description, version: u32) -> Option<Error> {
    let mut load = Load { input: Reader::strict(bytes) };
    match load.program(&Program::of(there), version, BTreeMap::new()) {
        Err(Stop::Refused(error)) => Some(error),
        Err(Stop::Unknown) | Ok(()) => None,
    }
}

/// Why the check ends early.
enum Stop {
    /// The release refuses a value.
    Refused(Error),
    /// Only the release's own code knows the layout of what follows.
    Unknown,
}

impl From<Error> for Stop {
    fn from(_: Error) -> Self {
        Self::Unknown
    }
}

impl Stop {
    fn refused(message: String) -> Self {
        Self::Refused(Error::new(ErrorKind::Incompatible, message))
    }

    fn placed(self, place: impl FnOnce(Error) -> Error) -> Self {
        match self {
            Self::Refused(error) => Self::Refused(place(error)),
            Self::Unknown => Self::Unknown,
        }
    }
}

struct Load<'a> {
    input: Reader<'a>,
}

/// The integers of a struct read so far, which may be lengths of its arrays.
type Numbers<'p> = BTreeMap<&'p str, i128>;

impl Load<'_> {
    /// Checks a program. A subsection gets the integers of the struct that contains it.
    fn program<'p>(&mut self, program: &'p Program<'_>, version: u32, mut numbers: Numbers<'p>) -> Result<(), Stop> {
        let mut tag = None;
        for (index, step) in program.steps.iter().enumerate() {
            match step {
                Step::Member(member) => {
                    match member.presence {
                        Presence::Since(since) if *since > version => continue,
                        Presence::Since(_) => {}
                        Presence::Tag(number) if tag == Some(*number) => {}
                        Presence::Tag(_) if tag.is_some() => continue,
                        Presence::Tag(_) | Presence::If(_) => return Err(Stop::Unknown),
                    }
                    let number = self.member(member, &numbers);
                    let number = number.map_err(|stop| stop.placed(|error| error.in_field(&*member.name)))?;
                    numbers.extend(number.map(|number| (&*member.name, number)));
                    tag = if index == 0 { number } else { tag };
                }
                Step::Check { .. } => {}
                Step::Subsections(known) => {
                    while let Some(name) = self.input.peek_subsection(program.name)? {
                        let found = known.iter().find(|known| known.name.as_bytes() == name).ok_or(Stop::Unknown)?;
                        let (name, version) = self.input.subsection_header(found.name)?;
                        let loaded = self.program(found, version, numbers.clone());
                        loaded.map_err(|stop| stop.placed(|error| error.in_field(name)))?;
                    }
                }
                Step::Sent(..) | Step::Refuse(_) => return Err(Stop::Unknown),
            }
        }
        Ok(())
    }

    /// Checks a member that is present; returns its value if it is one integer.
    fn member(&mut self, member: &Member<'_>, numbers: &Numbers<'_>) -> Result<Option<i128>, Stop> {
        let counted = match member.count {
            Some(Count { length: Some(Length::Field(name)), factor, most, .. }) => {
                let length = numbers.get(&**name).ok_or(Stop::Unknown)?;
                let count = usize::try_from(*length).ok().and_then(|length| length.checked_mul(*factor));
                let count = count.ok_or(Stop::Unknown)?;
                at_most(count, *most)?;
                Some(count as u64)
            }
            _ => None,
        };
        let most = member.count.map_or(usize::MAX, |count| count.most);
        self.value(&member.encoding, counted, most)
    }

    fn value(&mut self, encoding: &Encoding<'_>, counted: Option<u64>, most: usize) -> Result<Option<i128>, Stop> {
        match encoding {
            Encoding::Item(item) => return self.item(item, counted),
            Encoding::Struct(nested) => self.program(&nested.program, nested.version, Numbers::new())?,
            Encoding::Repeat(Framing::Fixed(count), element) => self.elements(*count, element, counted)?,
            Encoding::Repeat(Framing::Counted, element) => {
                self.elements(counted.ok_or(Stop::Unknown)?, element, None)?;
            }
            Encoding::Repeat(Framing::List, element) => self.marked(element, most)?,
            Encoding::Repeat(Framing::Map, element) => {
                at_most(self.input.u32()? as usize, most)?;
                self.marked(element, most)?;
            }
            Encoding::Nullable(_) if self.input.peek(1) == Some(&[NULL]) => return Err(Stop::Unknown),
            Encoding::Nullable(pointee) => return self.value(pointee, counted, most),
            Encoding::Refuse(_) => return Err(Stop::Unknown),
        }
        Ok(None)
    }

    fn elements(&mut self, count: u64, element: &Encoding<'_>, counted: Option<u64>) -> Result<(), Stop> {
        // Elements that may have any value are skipped as one block.
        if let Encoding::Item(Item { size: Some(size), limit: None, meaning }) = element
            && *meaning != Meaning::Bool
        {
            return self.skip(count.checked_mul(*size));
        }
        for index in 0..count {
            // Charged because an element without bytes still takes time.
            self.input.charge(1)?;
            self.element(element, index, counted)?;
        }
        Ok(())
    }

    fn marked(&mut self, element: &Encoding<'_>, most: usize) -> Result<(), Stop> {
        let mut count = 0;
        while self.input.u8()? == MORE {
            at_most(count + 1, most)?;
            self.element(element, count as u64, None)?;
            count += 1;
        }
        Ok(())
    }

    fn element(&mut self, element: &Encoding<'_>, index: u64, counted: Option<u64>) -> Result<(), Stop> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let loaded = self.value(element, counted, usize::MAX);
        loaded.map(|_| ()).map_err(|stop| stop.placed(|error| error.in_element(index)))
    }

    fn item(&mut self, item: &Item<'_>, counted: Option<u64>) -> Result<Option<i128>, Stop> {
        let size = match (item.size, item.meaning) {
            (Some(size), _) => Some(size),
            (None, Meaning::Raw) => counted,
            (None, Meaning::Bitmap(_)) => counted.map(bitmap_size),
            (None, _) => None,
        };
        let is_signed = match item.meaning {
            Meaning::Bool | Meaning::Unsigned => false,
            Meaning::Signed => true,
            _ => return self.skip(size).map(|()| None),
        };
        let bytes = self.input.take(usize::try_from(size.ok_or(Stop::Unknown)?).unwrap_or(usize::MAX))?;
        let value = integer(bytes, is_signed);
        let is_taken = match item.limit {
            _ if item.meaning == Meaning::Bool => (0..=1).contains(&value),
            // Only the machine at the release has the value to compare with.
            None | Some(Limit::Equal | Limit::AtMostCurrent) => true,
            Some(Limit::NotZero) => value != 0,
            Some(Limit::Within(first, last)) => (*first..=*last).contains(&value),
            Some(Limit::Scalar) => u32::try_from(value).is_ok_and(|value| char::from_u32(value).is_some()),
            Some(Limit::OneOf(values)) => values.contains(&value),
        };
        match (is_taken, item.limit) {
            (true, _) => Ok(Some(value)),
            (false, Some(Limit::OneOf(values))) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                Err(Stop::refused(format!("{value} is not known there, only {}", values.join(", "))))
            }
            (false, Some(Limit::Within(first, last))) => {
                Err(Stop::refused(format!("{value} is not accepted there, only {first} to {last}")))
            }
            (false, _) => Err(Stop::refused(format!("{value} is not accepted there"))),
        }
    }

    fn skip(&mut self, size: Option<u64>) -> Result<(), Stop> {
        let size = usize::try_from(size.ok_or(Stop::Unknown)?).map_err(|_| Stop::Unknown)?;
        self.input.take(size)?;
        Ok(())
    }
}

/// Refuses more elements than the release accepts.
fn at_most(count: usize, most: usize) -> Result<(), Stop> {
    match count <= most {
        true => Ok(()),
        false => Err(Stop::refused(format!("it has {count} elements, there at most {most} are accepted"))),
    }
}

/// Decodes one to eight bytes, big-endian; two's complement if `is_signed`.
fn integer(bytes: &[u8], is_signed: bool) -> i128 {
    let number = bytes.iter().take(8).fold(0, |number: i128, byte| number << 8 | i128::from(*byte));
    let bits = 8 * bytes.len().clamp(1, 8);
    if is_signed && number >> (bits - 1) != 0 { number - (1 << bits) } else { number }
}
