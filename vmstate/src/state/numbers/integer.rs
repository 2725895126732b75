//! Integers, with their limits and encodings, and booleans.

use std::fmt::Display;

use byteorder::{BigEndian, ByteOrder as _};

use super::super::Wire;
use super::super::arrays::load_each;
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Kind;

/// An integer that can be compared, used as a count, or sent as another integer type.
#[diagnostic::on_unimplemented(
    message = "an integer is needed here, `{Self}` is none",
    note = "`range`, `wire`, `equal`, `at_most_current` and the field that `len` names are for integers"
)]
pub trait Integer: Copy + Ord + Default + Display + TryFrom<usize> + TryInto<usize> {
    /// The lowest value.
    const LOWEST: i128;
    /// The highest value.
    const HIGHEST: i128;
}

/// An integer that can precede elements as their number.
#[diagnostic::on_unimplemented(message = "`counted` needs `u8`, `u16`, `u32` or `u64`, `{Self}` is none of them")]
pub trait Prefix: Integer + Wire {}

macro_rules! integer {
    ($($type:ty $(: $prefix:ident)? $(=> $kind:expr, $write:expr, $read:expr)?);* $(;)?) => {$(
        impl Integer for $type {
            const LOWEST: i128 = <$type>::MIN as i128;
            const HIGHEST: i128 = <$type>::MAX as i128;
        }

        $(impl $prefix for $type {})?

        $(impl Wire for $type {
            type Undo = $type;
            const KIND: Kind = $kind;

            #[inline]
            fn save(&mut self, out: &mut Writer) -> Result<()> {
                out.bytes(&self.to_be_bytes());
                Ok(())
            }

            #[inline]
            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                *self = <$type>::from_be_bytes(input.array()?);
                Ok(())
            }

            #[inline]
            fn remember(&self) -> Self {
                *self
            }

            #[inline]
            fn undo(&mut self, undo: Self) {
                *self = undo;
            }

            #[inline]
            fn save_all(elements: &mut [Self], out: &mut Writer) -> Result<()> {
                $write(elements, out);
                Ok(())
            }

            #[inline]
            fn load_all(elements: &mut [Self], input: &mut Reader<'_>) -> Result<()> {
                match input.bytes_at_hand(size_of_val(elements)) {
                    Some(bytes) => {
                        $read(bytes, elements);
                        Ok(())
                    }
                    None => cut(elements, input),
                }
            }
        })?
    )*};
}

integer! {
    u8: Prefix => Kind::Unsigned(1), save_bytes, load_bytes;
    u16: Prefix => Kind::Unsigned(2), in_pieces::<_, 32>(BigEndian::write_u16_into), BigEndian::read_u16_into;
    u32: Prefix => Kind::Unsigned(4), in_pieces::<_, 16>(BigEndian::write_u32_into), BigEndian::read_u32_into;
    u64: Prefix => Kind::Unsigned(8), in_pieces::<_, 8>(BigEndian::write_u64_into), BigEndian::read_u64_into;
    i8 => Kind::Signed(1), in_pieces::<_, 64>(BigEndian::write_i8_into), read_i8_into;
    i16 => Kind::Signed(2), in_pieces::<_, 32>(BigEndian::write_i16_into), BigEndian::read_i16_into;
    i32 => Kind::Signed(4), in_pieces::<_, 16>(BigEndian::write_i32_into), BigEndian::read_i32_into;
    i64 => Kind::Signed(8), in_pieces::<_, 8>(BigEndian::write_i64_into), BigEndian::read_i64_into;
    // `usize` differs in size between machines, so it has no encoding of its own.
    usize;
    isize;
}

/// Loads one by one, so that the error names the element at which the bytes end.
#[cold]
#[inline(never)]
fn cut<T: Wire>(elements: &mut [T], input: &mut Reader<'_>) -> Result<()> {
    load_each(elements, input, T::load)
}

/// Saves elements in blocks of `PIECE` (64 bytes each), encoded by `write`. Filling the whole buffer with zeros first and then
/// overwriting it costs up to twice the time.
#[inline]
fn in_pieces<T, const PIECE: usize>(write: impl Fn(&[T], &mut [u8])) -> impl Fn(&[T], &mut Writer) {
    move |elements, out| {
        let mut bytes = [0; 64];
        let (pieces, rest) = elements.as_chunks::<PIECE>();
        for piece in pieces {
            write(piece, &mut bytes);
            out.bytes(&bytes);
        }
        if let Some(bytes) = bytes.get_mut(..size_of_val(rest)) {
            write(rest, bytes);
            out.bytes(bytes);
        }
    }
}

fn save_bytes(from: &[u8], out: &mut Writer) {
    out.bytes(from);
}

fn load_bytes(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}

fn read_i8_into(from: &[u8], to: &mut [i8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.cast_signed());
}

/// The value of a bool's byte, which is `behind` bytes before the read position of `input`. QEMU takes any non-zero byte for true
/// (`get_bool`, migration/vmstate-types.c); a strict load takes only 0 and 1.
#[inline]
pub fn bool_of(byte: u8, behind: usize, input: &Reader<'_>) -> Result<bool> {
    match byte > 1 && input.strictness() == Strictness::Strict {
        true => Err(no_bool(byte, behind, input)),
        false => Ok(byte != 0),
    }
}

#[cold]
#[inline(never)]
fn no_bool(byte: u8, behind: usize, input: &Reader<'_>) -> Error {
    let offset = input.offset().saturating_sub(behind as u64);
    Error::new(ErrorKind::Malformed, format!("a bool is 0 or 1, got {byte}")).at(offset)
}

impl Wire for bool {
    type Undo = bool;
    const KIND: Kind = Kind::Bool;

    #[inline]
    fn save(&mut self, out: &mut Writer) -> Result<()> {
        out.u8(u8::from(*self));
        Ok(())
    }

    #[inline]
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        *self = bool_of(input.u8()?, 1, input)?;
        Ok(())
    }

    #[inline]
    fn remember(&self) -> Self {
        *self
    }

    #[inline]
    fn undo(&mut self, undo: Self) {
        *self = undo;
    }
}
