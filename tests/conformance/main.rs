//! Conformance: what is on the wire is QEMU's format, judged by a parser that shares no code with the crates.

mod damaged;
mod dump;
mod fixtures;
mod grammar;
mod own;
mod remade;
