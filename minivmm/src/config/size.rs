//! Parses a number of bytes.

/// Why a text is not a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSize {
    /// The text is not written as a size.
    Malformed,
    /// The size is more than 64 bits can count.
    TooLarge,
}

/// Parses bytes as QEMU's `qemu_strtosz` does (util/cutils.c), without a fraction: decimal with a unit from `B` to `E`, in
/// either case, each 1024 times the one before it, or without a unit, which then is `unit` bytes; or hexadecimal without a
/// unit.
///
/// # Errors
/// The text is no size.
pub fn size(text: &str, unit: u64) -> Result<u64, NoSize> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let power = text.chars().last().and_then(|last| "bkmgtpe".find(last.to_ascii_lowercase()));
    let (digits, radix, unit) = match (hexadecimal, power) {
        (Some(digits), _) => (digits, 16, unit),
        (None, Some(power)) => (&text[..text.len() - 1], 10, 1 << (10 * power)),
        (None, None) => (text, 10, unit),
    };
    // The standard library would accept a sign.
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(NoSize::Malformed);
    }
    let number = u64::from_str_radix(digits, radix).ok();
    number.and_then(|number| number.checked_mul(unit)).ok_or(NoSize::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are from QEMU's documentation of `qemu_strtosz` and its tests (tests/unit/test-cutils.c).
    #[test]
    fn bytes_are_read_as_qemu_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("12345B", 12345),
            ("0x1f", 31),
            ("1k", 1 << 10),
            ("1K", 1 << 10),
            ("1M", 1 << 20),
            ("1g", 1 << 30),
            ("1T", 1 << 40),
            ("1P", 1 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text, 1), Ok(bytes), "{text}");
        }
        assert_eq!(
            (size("3", 1 << 20), size("3k", 1 << 20), size("0x3", 1 << 20)),
            (Ok(3 << 20), Ok(3 << 10), Ok(3 << 20))
        );
        for text in ["", "-1", "+1", "x", "0x", "0x20M", "1MM", "M", "1µ", "µ", "1.5G"] {
            assert_eq!(size(text, 1), Err(NoSize::Malformed), "{text}");
        }
        for text in ["16E", "18446744073709551616", "0x10000000000000000"] {
            assert_eq!(size(text, 1), Err(NoSize::TooLarge), "{text}");
        }
    }
}
