//! QEMU as the other side: it loads streams made again from types, states that minivmm's devices were driven to, and
//! guests of minivmm; and the guest goes on. Mostly that is the tiny guest, which checks its memory and counts.

mod channels;
mod driven;
mod faults;
mod guests;
mod moves;
mod peer;
mod processor;
mod reboots;
mod refusals;
mod streams;
