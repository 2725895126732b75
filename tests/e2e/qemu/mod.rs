//! QEMU as the other side: it takes streams made again from types, states that minivmm's devices were driven to, and
//! guests of minivmm's; and the guest goes on. Mostly it is the tiny guest, which checks its memory and counts aloud.

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
