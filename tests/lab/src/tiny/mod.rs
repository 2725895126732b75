//! The tiny guest: a bare-metal kernel of a few hundred bytes that rewrites and checks memory and prints its progress.
//!
//! The guest is wrapped as a bzImage and so boots as Linux does. `tiny.S` describes its output and its commands.

mod code;
pub mod cpuid;
pub mod generation;
pub mod tick;

use crate::image;

/// Guest address of the first page that the guest writes.
pub const FIRST_PAGE: u64 = 0x40_0000;

/// Registers of the first virtio-mmio device of QEMU's `microvm`, and of minivmm.
const FIRST_DISK: u64 = 0xfeb0_0e00;

/// The first line that the guest prints.
pub const BANNER: &str = "tiny\n";

/// Offset of the setup code, after the header: the jump at 0x200 leads to it.
const SETUP_ENTRY: usize = 0x280;

/// Offset of the 64-bit entry point in the loaded part (Linux, Documentation/arch/x86/boot.rst).
const ENTRY: usize = 0x200;

/// The guest as a bzImage, with the real-mode and the 64-bit entry point.
///
/// ```
/// let image = vmstate_lab::tiny::bzimage();
/// assert_eq!(&image[0x202..0x206], b"HdrS");
/// ```
pub fn bzimage() -> Vec<u8> {
    wrap(&code::CODE)
}

/// The same image with `code` in place of the first instructions at the 64-bit entry point.
///
/// # Panics
/// When `code` is longer than the guest's own code.
pub fn with_code(code: &[u8]) -> Vec<u8> {
    let mut whole = code::CODE.to_vec();
    whole[..code.len()].copy_from_slice(code);
    wrap(&whole)
}

/// A bzImage whose 64-bit entry point is the first byte of `code`.
fn wrap(code: &[u8]) -> Vec<u8> {
    let mut image = image::bzimage(&[&[0; ENTRY], code].concat());
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x200, &[0xeb, (SETUP_ENTRY - 0x202) as u8]); // jump
    put(SETUP_ENTRY, &code::SETUP_CODE);
    image
}

/// The guest's command line: `pages` pages in each pass, and a pass begun every `span` times 65536 time stamp counter
/// ticks.
pub fn command_line(pages: u64, span: u64) -> String {
    format!("{pages:x} {span:x}")
}

/// As [`command_line`], with the machine's first disk, whose first sector the guest checks and rewrites in each pass.
pub fn command_line_with_disk(pages: u64, span: u64) -> String {
    format!("{} {FIRST_DISK:x}", command_line(pages, span))
}

/// As [`command_line_with_disk`], or without the disk, for tests with many guests: the guest's processor is halted between the
/// passes. The guest must not go from KVM to QEMU's TCG, which does not start the local APIC's timer again.
pub fn halting_command_line(pages: u64, span: u64, has_disk: bool) -> String {
    const SLEEP: u64 = 500_000;
    format!("{} {:x} {SLEEP:x}", command_line(pages, span), if has_disk { FIRST_DISK } else { 0 })
}

/// The first and last eight bytes of the disk's first sector after pass `pass`: a pattern as a page's, without an
/// address.
pub fn expected_on_disk(pass: u64) -> u64 {
    expected(0, pass)
}

/// The first and last eight bytes of the page at guest address `page` after pass `pass`.
pub fn expected(page: u64, pass: u64) -> u64 {
    pass.wrapping_mul(0x61c8_8647) ^ page
}

/// Numbers of the passes whose whole line is on the console.
///
/// ```
/// assert_eq!(vmstate_lab::tiny::passes("tiny\np00000001\np0000000a\np000"), [1, 10]);
/// ```
pub fn passes(console: &str) -> Vec<u64> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    let numbers = whole.lines().filter_map(|line| line.trim().strip_prefix('p'));
    numbers.filter(|digits| digits.len() == 8).filter_map(|digits| u64::from_str_radix(digits, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Oracle: the assembler.
    #[test]
    fn code_is_the_assembled_source() {
        let dir = tempfile::tempdir().unwrap();
        let (object, binary) = (dir.path().join("tiny.o"), dir.path().join("tiny.bin"));
        let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        if !run(Command::new("as").arg("--version").stdout(std::process::Stdio::null())) {
            return crate::skip::skip("binutils are missing: apt-get install binutils");
        }
        let codes = [
            ("tiny.S", &super::code::CODE[..]),
            ("tick.S", &super::code::TICK_CODE),
            ("setup.S", &super::code::SETUP_CODE),
            ("cpuid.S", &super::code::CPUID_CODE),
            ("generation.S", &super::code::GENERATION_CODE),
        ];
        for (name, code) in codes {
            let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tiny");
            let source = format!("{sources}/{name}");
            assert!(run(Command::new("as").args(["--64", "-I", sources]).arg("-o").arg(&object).arg(source)));
            assert!(run(Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).arg(&object).arg(&binary)));
            assert!(std::fs::read(&binary).unwrap() == code, "assemble {name} anew and update code.rs");
        }
    }
}
