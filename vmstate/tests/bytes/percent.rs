//! For `via`: a percentage, which is a `u8` on the wire. The type has no default and no encoding of its own.

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Percent(pub(crate) f64);

impl From<&Percent> for u8 {
    fn from(percent: &Percent) -> u8 {
        percent.0 as u8
    }
}

impl TryFrom<u8> for Percent {
    type Error = String;

    fn try_from(wire: u8) -> Result<Self, String> {
        if wire <= 100 { Ok(Self(wire.into())) } else { Err(format!("{wire} % is more than all")) }
    }
}
