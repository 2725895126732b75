//! Shared parts of the workspace's tests.
