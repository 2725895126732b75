//! `#[vmstate(buffer)]`: raw bytes, which the self-description shows as one value.

use super::Packing;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::Kind;

/// Bytes that are sent unchanged.
#[derive(Debug)]
pub struct Buffer;

impl Packing<u8> for Buffer {
    const KIND: Kind = Kind::CountedBuffer;

    #[inline]
    fn save(elements: &mut [u8], _count: usize, out: &mut Writer) -> Result<()> {
        out.bytes(elements);
        Ok(())
    }

    #[inline]
    fn load(elements: &mut [u8], _count: usize, input: &mut Reader<'_>) -> Result<()> {
        elements.copy_from_slice(input.take(elements.len())?);
        Ok(())
    }
}
