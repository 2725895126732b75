//! What hostile input may not do to `vmstate` and minivmm: each [`Target`] takes any bytes, and panics if they break a
//! promise. A driver looks for such bytes (`tests/fuzz/run`); `cargo test` tries those that are known.

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
mod qmp;
mod rollback;
mod schema;
mod section;
mod stream;
pub mod streams;
mod xbzrle;

pub use bounds::within;
pub use rollback::Rollback;

/// One way in for hostile bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name; inputs that are kept are in `corpus/` under it.
    pub name: &'static str,
    /// What it may allocate at a time, in bytes.
    pub memory: u64,
    body: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 12] = [
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
];

impl Target {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Tries one input.
    ///
    /// # Panics
    /// If the library breaks a promise, or takes more memory than allowed.
    pub fn run(&self, input: &[u8]) {
        within(self.memory, || (self.body)(input));
    }

    /// Inputs to begin with, made of streams that QEMU and this library wrote.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }
}
