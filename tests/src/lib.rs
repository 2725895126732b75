//! Shared parts of the workspace's tests.

pub mod difference;
pub mod microvm;
pub mod stream_parser;
