//! The firmware's segment below 1 MiB as the guest sees it: a migration must not change a byte of it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{FileContext, Result};

const MEMORY: &str = "/dev/mem";
/// Start of the segment. `/dev/mem` reads these addresses on every kernel: in the memory map they are no RAM
/// (`devmem_is_allowed`, arch/x86/mm/init.c).
const START: u64 = 0xe_0000;
const LEN: usize = 0x2_0000;

/// A checksum over all bytes, the number of bytes that are not zero, and the address of ACPI's RSDP, if there is one.
pub(super) fn seen() -> Value {
    match read() {
        Ok(bytes) => {
            let sign = (0..LEN).step_by(16).find(|&at| bytes[at..].starts_with(b"RSD PTR "));
            let used = bytes.iter().filter(|&&byte| byte != 0).count();
            json!({ "sum": format!("{:016x}", sum(&bytes)), "used": used, "rsdp": sign.map(|at| START + at as u64) })
        }
        Err(error) => json!({ "error": error.to_string() }),
    }
}

fn read() -> Result<Vec<u8>> {
    let path = Path::new(MEMORY);
    let mut memory = File::open(path).doing("open", path)?;
    memory.seek(SeekFrom::Start(START)).doing("read", path)?;
    let mut bytes = vec![0; LEN];
    memory.read_exact(&mut bytes).doing("read", path)?;
    Ok(bytes)
}

/// The FNV-1a checksum, 64 bits.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    /// Test values of the algorithm's authors (draft-eastlake-fnv, appendix C).
    #[test]
    fn the_sum_is_fnv_1a() {
        assert_eq!(super::sum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(super::sum(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
