//! Two sides of a migration in one process, on a virtual wire and virtual time: deterministic, and faults where asked.

// Each test uses its part of it.
#![allow(dead_code, unreachable_pub)]

pub mod device;
pub mod fault;
pub mod flash;
pub mod guest;
pub mod late;
pub mod run;
pub mod vm;
pub mod world;
