//! minivmm: a small KVM virtual-machine monitor that boots Linux and live-migrates it with `vmstate`.

// Messages go through `error::print_message`, so that text from a peer cannot control the terminal.
#![deny(clippy::print_stderr)]

pub mod boot;
pub mod bus;
pub mod certificates;
pub mod cli;
pub mod command;
pub mod config;
pub mod console;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod error;
pub mod files;
pub mod irq;
pub mod kvm;
pub mod log;
pub mod machine_map;
pub mod memory;
pub mod migration;
pub mod passed;
pub mod program;
pub mod sandbox;
mod sync;
pub mod vm;
