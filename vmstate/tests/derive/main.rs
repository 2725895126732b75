//! Derived devices: hooks, names, errors, undo, self-descriptions, and structs of other crates. The bytes of each kind of field
//! are in `bytes`.

mod errors;
#[cfg(all(feature = "engine", feature = "vm-memory"))]
mod guest_address;
mod hooks;
mod large;
#[cfg(feature = "tools")]
mod names;
#[cfg(feature = "tools")]
mod qemu;
mod remote;
#[cfg(all(feature = "tools", feature = "virtio-queue", feature = "vm-memory", feature = "vm-superio"))]
mod rust_vmm;
mod undo;
#[cfg(feature = "engine")]
mod vmdesc;
