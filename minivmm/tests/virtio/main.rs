//! Virtio devices without KVM, used by a driver with numbers from the virtio 1.2 text.

#![allow(unreachable_pub)] // modules of one test program

mod blk;
mod budgets;
mod driver;
mod handed_over;
mod hostile;
mod large_requests;
mod limits;
mod locks;
mod mmio;
mod negotiation;
mod net;
mod passt;
mod plane;
mod state;
mod stream;
mod threads;
mod turns;
