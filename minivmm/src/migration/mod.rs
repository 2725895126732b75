//! Migration: the seams between the machine and `vmstate`: guest RAM and its dirty log, and the table of sections.

pub mod global;
pub mod ownership;
pub mod ram;
pub mod sections;
mod view;
