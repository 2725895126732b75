//! Migration: the four seams between the machine and `vmstate`.

pub mod global;
mod view;
