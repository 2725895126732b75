//! Migration: interfaces of the machine for `vmstate`: guest RAM and its dirty log, the table of sections, and the comparison
//! of both machines.

pub mod bitmaps;
pub mod block_time;
pub mod dirty_log;
pub mod disk;
pub mod firmware;
pub mod global;
pub mod in_transit;
pub mod ownership;
mod postcopy_ram;
pub mod preflight;
pub mod qemu_sections;
pub mod ram;
mod remedies;
mod section_of;
pub mod sections;
