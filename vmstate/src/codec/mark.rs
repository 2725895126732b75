//! Marker bytes between values, which show a reader what follows.

/// Begins a subsection (`QEMU_VM_SUBSECTION`, migration/savevm.h).
pub(crate) const SUBSECTION: u8 = 0x05;
/// Replaces a pointer that is null (`VMS_NULLPTR_MARKER`, migration/vmstate.h): an ASCII `0`.
pub(crate) const NULL: u8 = 0x30;
/// Comes before each element of a list or map (`put_qtailq`, migration/vmstate-types.c).
pub(crate) const MORE: u8 = 1;
/// Comes after the last element.
pub(crate) const NO_MORE: u8 = 0;
