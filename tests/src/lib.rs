//! Shared parts of the workspace's tests.

pub mod difference;
pub mod microvm;
pub mod stream_parser;

/// The repository's README, whose examples run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
