//! Shared parts of the workspace's tests.

pub mod stream_parser;
