//! The only ioctls.

pub mod state;
