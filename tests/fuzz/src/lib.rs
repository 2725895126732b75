//! Fuzz targets for hostile input to `vmstate` and minivmm: each [`Target`] takes any bytes, and panics if they break a
//! promise. A driver searches for such bytes (`tests/fuzz/run`); `cargo test` replays the known inputs.

mod arrival;
mod bounds;
mod compat;
pub mod corpus;
pub mod devices;
mod every_kind;
pub mod flash;
mod guest;
mod inspect;
mod kernel;
pub mod machine;
mod multifd;
mod pairing;
mod program;
mod qmp;
mod rollback;
mod schema;
mod section;
mod stream;
pub mod streams;
mod xbzrle;

pub use bounds::within;
pub use rollback::Rollback;

/// An entry point for hostile bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The target's name; its kept inputs are in `corpus/` under this name.
    pub name: &'static str,
    /// Most bytes that the target may hold at a time.
    pub memory: u64,
    body: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 13] = [
    section::TARGET,
    stream::TARGET,
    inspect::TARGET,
    schema::TARGET,
    compat::TARGET,
    every_kind::TARGET,
    qmp::TARGET,
    kernel::TARGET,
    guest::TARGET,
    xbzrle::TARGET,
    multifd::TARGET,
    pairing::TARGET,
    arrival::TARGET,
];

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Runs the target on one input.
    ///
    /// # Panics
    /// When the library breaks a promise, or holds more memory than allowed.
    pub fn run(&self, input: &[u8]) {
        within(self.memory, || (self.body)(input));
    }

    /// Inputs to begin with, made from streams that QEMU and this library wrote.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }
}
