//! The ownership record as bytes: 36 bytes, in one versioned format.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `VMOWNER` and a NUL |
//! | 4 | version of the format, 1 |
//! | 16 | token |
//! | 8 | generation |
//!
//! Integers are big-endian.

const MAGIC: &[u8; 8] = b"VMOWNER\0";
const VERSION: u32 = 1;

/// Size of a record in bytes.
pub const RECORD_LEN: usize = 36;

/// Which side ran a guest on a resource last, and how often a guest has been started on the resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// A random number. The source of a migration writes a fresh token when the migration begins, so that an earlier copy of the
    /// resource has another token.
    pub token: [u8; 16],
    /// Incremented with each start of a guest on this resource: at a boot, and at the end of a migration by the side that runs
    /// the guest.
    pub generation: u64,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too few or too many bytes.
    #[error("it has {0} bytes, an ownership record has {RECORD_LEN}")]
    Length(usize),
    /// The bytes do not begin with the magic number.
    #[error("it does not begin with the magic number of an ownership record")]
    Magic,
    /// The version is that of a later release.
    #[error("version {0} of its format is not known here, only {VERSION} is")]
    Version(u32),
}

impl Record {
    /// The stored form of the record.
    pub fn to_bytes(&self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        let parts = MAGIC.iter().copied().chain(VERSION.to_be_bytes()).chain(self.token);
        for (byte, part) in bytes.iter_mut().zip(parts.chain(self.generation.to_be_bytes())) {
            *byte = part;
        }
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] for bytes that [`to_bytes`](Self::to_bytes) cannot have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let wrong_length = RecordError::Length(bytes.len());
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(wrong_length)?;
        if magic != MAGIC {
            return Err(RecordError::Magic);
        }
        let (version, rest) = rest.split_first_chunk::<4>().ok_or(wrong_length)?;
        let version = u32::from_be_bytes(*version);
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let (token, rest) = rest.split_first_chunk::<16>().ok_or(wrong_length)?;
        let generation = <[u8; 8]>::try_from(rest).map_err(|_| wrong_length)?;
        Ok(Self { token: *token, generation: u64::from_be_bytes(generation) })
    }

    /// The same record with a new random token.
    pub(super) fn with_fresh_token(self) -> std::io::Result<Self> {
        let mut token = [0; 16];
        let mut filled = 0;
        while let Some(rest) = token.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Self { token, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8; RECORD_LEN] = b"VMOWNER\0\0\0\0\x01abcdefghijklmnop\0\0\0\0\0\0\x01\x02";

    #[test]
    fn bytes_are_those_of_the_documented_format() {
        let record = Record { token: *b"abcdefghijklmnop", generation: 0x102 };
        assert_eq!(&record.to_bytes(), BYTES);
        assert_eq!(Record::from_bytes(BYTES), Ok(record));
    }

    #[test]
    fn other_bytes_are_refused() {
        let parse = |bytes: &[u8]| Record::from_bytes(bytes).unwrap_err();
        for len in [0, 7, 8, 11, 12, 27, 28, 35] {
            assert_eq!(parse(&BYTES[..len]), RecordError::Length(len));
        }
        assert_eq!(parse(&[&BYTES[..], b"\0"].concat()), RecordError::Length(37));
        assert_eq!(parse(&[b"#!/bin/sh\n".as_slice(); 4].concat()), RecordError::Magic);
        let mut newer = *BYTES;
        newer[11] = 2;
        assert_eq!(parse(&newer), RecordError::Version(2));
    }

    #[test]
    fn fresh_tokens_differ_and_keep_the_generation() {
        let old = Record { generation: 7, ..Record::default() };
        let (one, other) = (old.with_fresh_token().unwrap(), old.with_fresh_token().unwrap());
        assert!(one.token != old.token && one.token != other.token);
        assert_eq!((one.generation, other.generation), (7, 7));
    }
}
