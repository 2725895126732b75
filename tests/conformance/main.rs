//! Conformance: the stream has QEMU's format, by a parser that shares no code with the crates.

mod damaged;
mod dump;
mod fixtures;
mod grammar;
mod own;
mod remade;
