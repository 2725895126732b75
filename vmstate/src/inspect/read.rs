//! Decodes the bytes of a section by its program: that of a schema, or that of the stream's self-description.
//!
//! A schema says what may be on the wire. The decisions of a save (predicates, counts, null pointers) are not in the bytes, so
//! decoding stops at them. A self-description says what was sent, and leaves nothing undecided.

use std::rc::Rc;

use super::{Field, Fields, Subsection, Value};
use crate::codec::Reader;
use crate::codec::mark::{MORE, NO_MORE, NULL};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Presence;
use crate::schema::program::{Encoding, Framing, Item, Meaning, Member, Nested, Program, Step};

impl Fields {
    /// Decodes the bytes that `program` has at `version`; the values before an error stay in `self`.
    pub(crate) fn run(&mut self, input: &mut Reader<'_>, program: &Program<'_>, version: u32) -> Result<()> {
        if !program.has_version(version) {
            let (oldest, newest) = (program.oldest, program.newest);
            return unknown(input, format!("version {version}, the schema has {oldest} to {newest}"));
        }
        // Charged because a step without bytes still takes time, and may be in each of a thousand million elements.
        input.charge(program.steps.len())?;
        let (before, mut tag) = (self.fields.len(), None);
        for (index, step) in program.steps.iter().enumerate() {
            match step {
                Step::Member(member) => {
                    self.read_member(input, member, version, tag)?;
                    if index == 0 {
                        tag = self.fields.get(before).and_then(|first| first.value.number());
                    }
                }
                Step::Check { .. } => {}
                Step::Subsections(known) => self.read_subsections(input, program.name, known)?,
                Step::Sent(version, subsection) => self.read_sent(input, *version, subsection)?,
                Step::Refuse(why) => return Err(input.malformed(why)),
            }
        }
        Ok(())
    }

    /// Decodes a member, if it is present; `tag` is the number in the struct's first field.
    fn read_member(
        &mut self,
        input: &mut Reader<'_>,
        member: &Member<'_>,
        version: u32,
        tag: Option<i128>,
    ) -> Result<()> {
        let named = |error: Error| error.in_field(&*member.name);
        match member.presence {
            Presence::Since(since) if *since > version => return Ok(()),
            Presence::Since(_) => {}
            Presence::If(predicate) => {
                let predicate = if predicate.is_empty() { "a predicate" } else { predicate };
                return unknown(input, format!("{predicate} decides whether the field is present")).map_err(named);
            }
            Presence::Tag(number) => match tag {
                Some(tag) if tag == *number => {}
                Some(_) => return Ok(()),
                None => {
                    return unknown(input, "a missing tag decides whether the field is present".to_owned())
                        .map_err(named);
                }
            },
        }
        // Each element of an array of structs has its own copy of these names.
        input.charge(member.name.len().saturating_add(member.type_name.len())).map_err(named)?;
        let offset = input.offset();
        let mut value = Value::Array(Vec::new());
        let read = read_value(input, &member.encoding, &mut value);
        let size = input.offset().saturating_sub(offset);
        if size > 0 || read.is_ok() {
            let (name, type_name) = (member.name.to_string(), member.type_name.to_string());
            self.fields.push(Field { name, type_name, offset, size, value });
        }
        read.map_err(named)
    }

    /// Decodes the subsections that follow, if they are `known`.
    fn read_subsections(&mut self, input: &mut Reader<'_>, parent: &str, known: &[Rc<Program<'_>>]) -> Result<()> {
        while let Some(name) = input.peek_subsection(parent)? {
            let Some(subsection) = known.iter().find(|subsection| subsection.name.as_bytes() == name) else {
                let name = String::from_utf8_lossy(name);
                return unknown(input, format!("subsection {name}, which the schema does not have"));
            };
            let (name, version) = input.subsection_header(subsection.name)?;
            self.read_subsection(input, name, version, (subsection, version))?;
        }
        Ok(())
    }

    /// Decodes a subsection that was sent.
    fn read_sent(&mut self, input: &mut Reader<'_>, said: Option<u32>, subsection: &Program<'_>) -> Result<()> {
        let offset = input.offset();
        let wanted = subsection.name;
        let (name, version) = input.subsection_header(wanted)?;
        if name != wanted || said != Some(version) {
            let message = format!("the description has subsection {wanted} here, the stream {name} version {version}");
            return Err(Error::new(ErrorKind::Malformed, message).at(offset));
        }
        self.read_subsection(input, name, version, (subsection, subsection.newest))
    }

    fn read_subsection(
        &mut self,
        input: &mut Reader<'_>,
        name: &str,
        version: u32,
        (program, at): (&Program<'_>, u32),
    ) -> Result<()> {
        let mut fields = Self::default();
        let read = fields.run(input, program, at);
        self.subsections.push(Subsection { name: name.to_owned(), version, fields });
        read.map_err(|error| error.in_field(name))
    }
}

/// Decodes one value; if it is damaged or unknown from some byte on, `into` gets the part before.
fn read_value(input: &mut Reader<'_>, encoding: &Encoding<'_>, into: &mut Value) -> Result<()> {
    // Charged because an element of no bytes still takes memory, and may occur a thousand million times.
    input.charge(size_of::<Field>())?;
    match encoding {
        Encoding::Item(item) => {
            *into = read_item(input, item)?;
            Ok(())
        }
        Encoding::Struct(nested) => read_struct(input, nested, into),
        Encoding::Repeat(count, element) => {
            let mut elements = Vec::new();
            let read = read_elements(input, *count, element, &mut elements);
            *into = Value::Array(elements);
            read
        }
        Encoding::Nullable(_) if input.peek(1) == Some(&[NULL]) => {
            unknown(input, "0x30 is a null pointer, or the first byte of the value".to_owned())
        }
        Encoding::Nullable(inner) => read_value(input, inner, into),
        Encoding::Refuse(why) => Err(input.malformed(why)),
    }
}

fn read_item(input: &mut Reader<'_>, item: &Item<'_>) -> Result<Value> {
    let Some(size) = item.size else {
        return unknown(
            input,
            match item.meaning {
                Meaning::Codec(codec) => format!("only its codec {codec} can decode its bytes"),
                Meaning::Opaque(_) => "the schema does not state its size".to_owned(),
                _ => NO_COUNT.to_owned(),
            },
        );
    };
    let offset = input.offset();
    // For most fields, the size in memory (`Opaque`) equals that on the wire; if not, the footer check fails.
    let bytes = input.take(usize::try_from(size).unwrap_or(usize::MAX))?;
    Ok(match item.meaning {
        Meaning::Bool => match unsigned(bytes) {
            value @ (0 | 1) => Value::Bool(value == 1),
            other => return malformed(offset, format!("a bool is 0 or 1, got {other}")),
        },
        Meaning::Unsigned | Meaning::Timer => Value::Unsigned(unsigned(bytes)),
        Meaning::Signed => Value::Signed(signed(bytes)),
        Meaning::Double
        | Meaning::Bitmap(_)
        | Meaning::Raw
        | Meaning::Unused
        | Meaning::Opaque(_)
        | Meaning::Codec(_) => {
            input.charge(bytes.len())?;
            Value::Bytes(bytes.to_vec())
        }
    })
}

fn read_struct(input: &mut Reader<'_>, nested: &Nested<'_>, into: &mut Value) -> Result<()> {
    let offset = input.offset();
    let mut fields = Fields::default();
    let read = fields.run(input, &nested.program, nested.version);
    *into = Value::Struct(fields);
    read?;
    let came = input.offset().saturating_sub(offset);
    match nested.size {
        Some(size) if size != came => {
            malformed(offset, format!("a struct of {size} bytes is described, its fields have {came}"))
        }
        _ => Ok(()),
    }
}

fn read_elements(input: &mut Reader<'_>, count: Framing, element: &Encoding<'_>, into: &mut Vec<Value>) -> Result<()> {
    match count {
        Framing::Fixed(count) => (0..count).try_for_each(|_| push(input, element, into)),
        Framing::Counted => unknown(input, NO_COUNT.to_owned()),
        Framing::List => read_marked(input, element, into),
        Framing::Map => {
            let offset = input.offset();
            let count = input.u32()?;
            read_marked(input, element, into)?;
            match into.len() {
                came if came == count as usize => Ok(()),
                came => malformed(offset, format!("{count} entries are announced, {came} follow")),
            }
        }
    }
}

fn read_marked(input: &mut Reader<'_>, element: &Encoding<'_>, into: &mut Vec<Value>) -> Result<()> {
    loop {
        let offset = input.offset();
        match input.u8()? {
            NO_MORE => return Ok(()),
            MORE => push(input, element, into)?,
            other => {
                return malformed(offset, format!("1 before an element or 0 at the end expected, got {other}"));
            }
        }
    }
}

/// Decodes one more element.
fn push(input: &mut Reader<'_>, element: &Encoding<'_>, into: &mut Vec<Value>) -> Result<()> {
    let (index, before) = (into.len(), input.offset());
    let mut value = Value::Array(Vec::new());
    let read = read_value(input, element, &mut value);
    if read.is_ok() || input.offset() > before {
        into.push(value);
    }
    read.map_err(|error| error.in_element(index))
}

const NO_COUNT: &str = "the schema does not say which field has its length";

/// Up to eight bytes, big-endian.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// One to eight bytes, big-endian, two's complement.
fn signed(bytes: &[u8]) -> i64 {
    // Shifts the sign bit to the top and back, which extends the sign.
    let shift = 64 - 8 * bytes.len().clamp(1, 8);
    (unsigned(bytes) << shift).cast_signed() >> shift
}

/// The error for bytes that are well formed but do not determine what follows.
fn unknown<T>(input: &Reader<'_>, message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Incompatible, message).at(input.offset()))
}

fn malformed<T>(offset: u64, message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Malformed, message).at(offset))
}
