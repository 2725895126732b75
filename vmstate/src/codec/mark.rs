//! Single bytes that stand between values, and say how the bytes go on.

/// Begins a subsection (`QEMU_VM_SUBSECTION`, migration/savevm.h).
pub(crate) const SUBSECTION: u8 = 0x05;
/// Stands where a pointer is null (`VMS_NULLPTR_MARKER`, migration/vmstate.h): an ASCII `0`.
pub(crate) const NULL: u8 = 0x30;
/// Comes before each element of a list or map (`put_qtailq`, migration/vmstate-types.c).
pub(crate) const MORE: u8 = 1;
/// Comes behind the last element.
pub(crate) const NO_MORE: u8 = 0;
