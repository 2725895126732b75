//! Shared parts of the workspace's tests.

pub mod microvm;
pub mod stream_parser;
