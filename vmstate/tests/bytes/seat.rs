//! For `with`: a letter and a digit.

use vmstate::codec::{Reader, Writer};
use vmstate::schema::{Kind, MaybeStatic};

pub(crate) const KIND: Kind = Kind::Custom(MaybeStatic::Static("seat"));

pub(crate) fn save((row, place): &(char, u8), out: &mut Writer) -> vmstate::Result<()> {
    out.bytes(&[*row as u8, b'0' + place]);
    Ok(())
}

pub(crate) fn load(input: &mut Reader<'_>) -> vmstate::Result<(char, u8)> {
    let [row, place] = input.array()?;
    match place.checked_sub(b'0') {
        Some(place) => Ok((row.into(), place)),
        None => Err(input.malformed("no seat")),
    }
}
