//! Wrappers: types that hold one other value and have its bytes.
//!
//! A new one that hands out its value for `&mut` is a line in `pointer`. One with interior mutability belongs to `interior`,
//! where it gets [`Shareable`] as well, so that it can be behind an `Arc`. One that may be empty is as `optional`.

mod interior;
mod optional;
mod pointer;

pub use pointer::Shareable;
