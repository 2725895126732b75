//! The CPUID guest: a bare-metal kernel that prints the leaves of CPUID on its first vCPU, and powers off.

use super::code::CPUID_CODE;

/// The guest's last line.
const END: &str = "end";

/// A leaf or sub-leaf of CPUID that is not all zeros: EAX and ECX before the instruction; EAX, EBX, ECX and EDX after
/// it.
pub type Leaf = ([u32; 2], [u32; 4]);

/// The guest as a bzImage, as [`super::bzimage`].
pub fn bzimage() -> Vec<u8> {
    super::wrap(&CPUID_CODE)
}

/// The leaves printed on the console, in order; `None` until the guest has printed the last one.
///
/// ```
/// use vmstate_lab::tiny::cpuid::leaves;
/// let line = "\r\n00000001 00000000 00800f12 00010800 80000001 078bfbfd \r\n";
/// assert_eq!(leaves(&format!("{line}end\r\n")), Some(vec![([1, 0], [0x80_0f12, 0x1_0800, 0x8000_0001, 0x78b_fbfd])]));
/// assert_eq!(leaves(line), None);
/// ```
pub fn leaves(console: &str) -> Option<Vec<Leaf>> {
    let (lines, _) = console.split_once(END)?;
    Some(lines.lines().filter_map(leaf).collect())
}

fn leaf(line: &str) -> Option<Leaf> {
    let numbers = line.split_whitespace().map(|digits| u32::from_str_radix(digits, 16).ok());
    let [function, index, eax, ebx, ecx, edx] = numbers.collect::<Option<Vec<_>>>()?.try_into().ok()?;
    Some(([function, index], [eax, ebx, ecx, edx]))
}
