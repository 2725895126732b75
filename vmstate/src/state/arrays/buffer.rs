//! `#[vmstate(buffer)]`: raw bytes, which the self-description shows as one value.

use super::super::collections::Counted;
use super::super::numbers::outcome;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::Kind;

/// Types that `#[vmstate(buffer)]` can be put on without `len`.
#[diagnostic::on_unimplemented(message = "`buffer` needs `[u8; N]`, or `Vec<u8>` with `len`; `{Self}` is neither")]
pub trait Buffer {
    /// What the bytes are.
    const KIND: Kind;
    /// Appends them all.
    fn save(&self, out: &mut Writer) -> Result<()>;
    /// Replaces them all.
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()>;
}

impl<const N: usize> Buffer for [u8; N] {
    const KIND: Kind = Kind::Buffer(N);

    #[inline]
    fn save(&self, out: &mut Writer) -> Result<()> {
        out.bytes(self);
        Ok(())
    }

    #[inline]
    fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
        self.copy_from_slice(input.take(N)?);
        Ok(())
    }
}

/// Types that `#[vmstate(buffer)]` can be put on with `len`.
#[diagnostic::on_unimplemented(
    message = "`buffer` with `len` needs `Vec<u8>`, `[u8; N]` or `Box<[u8]>`; `{Self}` is none of them"
)]
pub trait CountedBuffer {
    /// Appends `count` bytes.
    fn save(&mut self, count: usize, out: &mut Writer) -> Result<()>;
    /// Replaces `count` bytes.
    fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()>;
}

macro_rules! counted_buffer {
    ($([$($generics:tt)*] $type:ty),*) => {$(
        impl<$($generics)*> CountedBuffer for $type {
            fn save(&mut self, count: usize, out: &mut Writer) -> Result<()> {
                let sent = self.sent(count)?;
                out.outcome(outcome(count)?);
                out.bytes(sent);
                Ok(())
            }

            fn load(&mut self, count: usize, input: &mut Reader<'_>) -> Result<()> {
                let room = self.room(count, input)?;
                room.copy_from_slice(input.take(count)?);
                Ok(())
            }
        }
    )*};
}

counted_buffer!([] Vec<u8>, [] Box<[u8]>, [const N: usize] [u8; N]);
