//! The tiny guest: a bare-metal kernel of a few hundred bytes that rewrites and checks memory and prints as it goes.
//!
//! It is wrapped as a bzImage and so boots as Linux does. What it prints and takes is told in `tiny.S`.

mod code;

/// Guest address of the first page it writes.
pub const FIRST_PAGE: u64 = 0x40_0000;

/// What it prints first.
pub const BANNER: &str = "tiny\n";

/// Bytes of boot sector and setup code, which a 64-bit loader skips.
const SETUP: usize = 2 * 512;

/// The 64-bit entry point's place in the loaded part (Linux, Documentation/arch/x86/boot.rst).
const ENTRY: usize = 0x200;

/// The guest as a bzImage of boot protocol 2.12, with the 64-bit entry point.
///
/// ```
/// let image = vmstate_lab::tiny::bzimage();
/// assert_eq!(&image[0x202..0x206], b"HdrS");
/// ```
pub fn bzimage() -> Vec<u8> {
    let mut image = vec![0; SETUP + ENTRY];
    image.extend_from_slice(&code::CODE);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x202, b"HdrS");
    put(0x206, &0x20c_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &255_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x10_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x1_0000_u32.to_le_bytes()); // init_size
    image
}

/// Its command line: `pages` pages a pass, a pass begun every `span` times 65536 time stamp counter ticks.
pub fn command_line(pages: u64, span: u64) -> String {
    format!("{pages:x} {span:x}")
}

/// What the page at guest address `page` holds in its first and last eight bytes after pass `pass`.
pub fn expected(page: u64, pass: u64) -> u64 {
    pass.wrapping_mul(0x61c8_8647) ^ page
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// The oracle is the assembler.
    #[test]
    fn code_is_the_assembled_source() {
        let dir = tempfile::tempdir().unwrap();
        let (object, binary) = (dir.path().join("tiny.o"), dir.path().join("tiny.bin"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tiny/tiny.S");
        let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        if !run(Command::new("as").arg("--version").stdout(std::process::Stdio::null())) {
            return crate::skip::skip("binutils are missing: apt-get install binutils");
        }
        assert!(run(Command::new("as").arg("--64").arg("-o").arg(&object).arg(source)));
        assert!(run(Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).arg(&object).arg(&binary)));
        assert!(std::fs::read(binary).unwrap() == super::code::CODE, "assemble tiny.S anew and update code.rs");
    }
}
