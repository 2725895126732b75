//! Images of kernels that are not Linux: bare code in the two formats that a monitor loads.

/// Bytes of boot sector and setup code of a bzImage, which a 64-bit loader skips.
const SETUP: usize = 2 * 512;

/// A bzImage of boot protocol 2.12 (Linux, Documentation/arch/x86/boot.rst) with an empty setup code. `loaded` is
/// loaded at 1 MiB, and its 64-bit entry point is at byte 512.
///
/// ```
/// let image = vmstate_lab::image::bzimage(&[0x90; 4096]);
/// assert_eq!((&image[0x202..0x206], image.len()), (&b"HdrS"[..], 1024 + 4096));
/// ```
pub fn bzimage(loaded: &[u8]) -> Vec<u8> {
    let mut image = vec![0; SETUP];
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
    image.extend_from_slice(loaded);
    image
}

/// An ELF kernel with the PVH note: one segment of `code` at `address`, entered at its beginning in 32-bit mode.
///
/// ```
/// let image = vmstate_lab::image::pvh_elf(0x10_0000, &[0xf4]);
/// assert_eq!((&image[..4], image[0x200..].len()), (&b"\x7fELF"[..], 1));
/// ```
pub fn pvh_elf(address: u32, code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x10, &[2, 0, 62, 0, 1]); // ET_EXEC, EM_X86_64, version
    put(0x18, &u64::from(address).to_le_bytes()); // e_entry
    put(0x20, &0x40_u64.to_le_bytes()); // e_phoff
    put(0x34, &[64, 0, 56, 0, 2, 0]); // e_ehsize, e_phentsize, e_phnum
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, len: u64| {
        put(at, &kind.to_le_bytes());
        for (n, value) in [offset, address, address, len, len, 4].into_iter().enumerate() {
            put(at + 8 + n * 8, &value.to_le_bytes());
        }
    };
    header(0x40, 1, 0x200, address.into(), code.len() as u64); // PT_LOAD
    header(0x78, 4, 0x100, 0, 20); // PT_NOTE
    put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]); // name and value of 4 bytes, XEN_ELFNOTE_PHYS32_ENTRY
    put(0x10c, b"Xen\0");
    put(0x110, &address.to_le_bytes());
    elf.extend_from_slice(code);
    elf
}
