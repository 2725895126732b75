//! Two sides of a migration in one process, on a virtual wire and virtual time: deterministic, with faults on request.

// Each test uses only a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod device;
pub mod fault;
pub mod flash;
pub mod guest;
pub mod missing_pages;
pub mod run;
pub mod vm;
pub mod world;
