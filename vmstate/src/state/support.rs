//! Functions that derived code calls. Not public interface: they change with the derive.

pub use super::arrays::{Bitmap, Buffer, Own, Packing, Slice, load_array_of, save_array_of, slice};
pub use super::coded::{Coded, Room};
pub use super::collections::{
    Counted, Elements, Entries, Len, List, ManyOf, Map, Sequence, counted, load_key, load_value, load_value_via, made,
    make_via, save_key,
};
pub use super::hook::{hook, load_hook, must_exist};
pub use super::keep::{Cloned, Either, Holds, If, InPlace, Keeps, OnHeap, Whole, few, tiny};
pub use super::numbers::{
    Integer, bool_of, count_to_load, count_to_save, in_range, load_as, load_at_most, load_equal, save_as, save_at_most,
    sent_as,
};
pub use super::subsection::{begin, header, next};
pub use super::temporary::{load_temporary, load_via, save_via, undo_temporary};
pub use super::{SectionRules, Temporary, VmState, Wire};
pub use crate::codec::{Reader, Writer};
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::schema::framing::fault_of_field;
pub use crate::schema::{Count, Description, Field, Kind, Length, Limit, MaybeStatic, Presence};

/// A reference to the kind of `T`, for kinds that contain another kind.
#[derive(Debug)]
pub struct KindOf<T>(std::marker::PhantomData<T>);

impl<T: Wire> KindOf<T> {
    /// The reference.
    pub const REF: &'static Kind = &T::KIND;
}

/// Adds the field's name to the error of its save or load.
#[cold]
pub fn named(error: Error, field: &'static str) -> Error {
    error.in_field(field)
}

/// Puts `bytes` at offset `START` of a run.
#[inline]
pub fn put_at<const START: usize, const N: usize, const RUN: usize>(run: &mut [u8; RUN], bytes: [u8; N]) {
    const { assert!(START + N <= RUN) };
    if let Some(place) = run.get_mut(START..START + N) {
        place.copy_from_slice(&bytes);
    }
}

/// Puts a bool at offset `START` of a run.
#[inline]
pub fn put_bool_at<const START: usize, const RUN: usize>(run: &mut [u8; RUN], value: bool) {
    put_at::<START, _, _>(run, [u8::from(value)]);
}

/// Appends the fields of a run that `version` has; the run's first field is field `first` of `fields`.
#[cold]
pub fn save_older(mut run: &[u8], version: u32, fields: &[Field], first: usize, out: &mut Writer) {
    for field in fields.iter().skip(first) {
        let Some((bytes, behind)) = run.split_at_checked(size_in_run(field)) else { return };
        if !matches!(field.presence, Presence::Since(since) if version < since) {
            out.bytes(bytes);
        }
        run = behind;
    }
}

/// Size of an integer or a bool.
fn size_in_run(field: &Field) -> usize {
    match field.kind {
        Kind::Unsigned(size) | Kind::Signed(size) => usize::from(size),
        _ => 1,
    }
}

/// The bytes at offset `START` of a run.
#[inline]
pub fn get_at<const START: usize, const N: usize, const RUN: usize>(run: &[u8; RUN]) -> [u8; N] {
    const { assert!(START + N <= RUN) };
    let mut bytes = [0; N];
    if let Some(place) = run.get(START..START + N) {
        bytes.copy_from_slice(place);
    }
    bytes
}

/// The bool at offset `START` of the run that `input` has just read.
#[inline]
pub fn get_bool_at<const START: usize, const RUN: usize>(run: &[u8; RUN], input: &Reader<'_>) -> Result<bool> {
    let [byte] = get_at::<START, 1, RUN>(run);
    bool_of(byte, RUN - START, input)
}

/// The bytes of a run of fields; `None` if `input` has fewer.
#[inline]
pub fn run<'a, const N: usize>(input: &mut Reader<'a>) -> Option<&'a [u8; N]> {
    input.chunk()
}

/// The error of the field at which the bytes end, in a run that begins with field `first` of `fields`.
#[cold]
pub fn cut(input: &mut Reader<'_>, fields: &[Field], first: usize) -> Error {
    let mut run = fields.iter().skip(first);
    let ended = run.find_map(|field| {
        let error = input.take(size_in_run(field)).err()?;
        Some(error.in_field(&*field.name))
    });
    ended.unwrap_or_else(|| input.incomplete(1))
}

/// The error for a value that is the number of no variant.
#[cold]
pub fn unknown_value<T: std::fmt::Display>(value: T, name: &str, known: &[(T, &str)], offset: u64) -> Error {
    let known: Vec<String> = known.iter().map(|(value, variant)| format!("{value} ({variant})")).collect();
    let message = format!("{value} is no {name}; known are {}", known.join(", "));
    Error::new(ErrorKind::Malformed, message).at(offset)
}

/// Records how many bytes a hand-written codec wrote, if its kind has no fixed size.
#[inline]
pub fn custom_size(kind: &Kind, before: usize, out: &mut Writer) -> Result<()> {
    if !matches!(kind, Kind::Custom(_)) {
        return Ok(());
    }
    let size = out.len().saturating_sub(before);
    let size =
        u32::try_from(size).map_err(|_| Error::new(ErrorKind::Rejected, format!("{size} bytes are too many")))?;
    out.outcome(size);
    Ok(())
}

/// Refuses to save at a version outside the supported range.
pub fn window_to_save(version: u32, description: &Description) -> Result<()> {
    if description.has_version(version) {
        return Ok(());
    }
    let Description { version: newest, minimum_version: oldest, .. } = description;
    let message = format!("cannot be saved at version {version}, only at {oldest} to {newest}");
    Err(Error::new(ErrorKind::Misuse, message))
}

/// Refuses to load a version outside the supported range.
#[inline]
pub fn window(version: u32, newest: u32, oldest: u32, input: &Reader<'_>) -> Result<()> {
    match version > newest || version < oldest {
        true => Err(outside(version, newest, oldest, input)),
        false => Ok(()),
    }
}

#[cold]
#[inline(never)]
fn outside(version: u32, newest: u32, oldest: u32, input: &Reader<'_>) -> Error {
    let message = match version > newest {
        true => format!("version {version} is newer than {newest}"),
        false => format!("version {version} is older than {oldest}, the oldest that loads"),
    };
    Error::new(ErrorKind::Incompatible, message).at(input.offset())
}
