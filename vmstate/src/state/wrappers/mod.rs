//! Wrappers: types that hold one other value and have the bytes of that value.
//!
//! A new wrapper that gives access to its value for `&mut` is a line in `pointer`. One with interior mutability belongs to
//! `interior`, with an impl of [`Shareable`] as well, so that it can be behind an `Arc`. One that may be empty is like
//! `optional`.

mod interior;
mod optional;
mod pointer;

pub use pointer::Shareable;
