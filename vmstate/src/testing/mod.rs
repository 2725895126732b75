//! Format locks, for the tests of embedders: streams of each release are kept beside the tests, and a change after which they no
//! longer load fails there.
//!
//! [`lock!`](crate::lock) takes a folder and examples of a device's state:
//!
//! ```no_run
//! # use vmstate::VmState;
//! # #[derive(VmState, Default)]
//! # #[vmstate(name = "uart")]
//! # struct Uart { divider: u16, pending: u8 }
//! // In a test:
//! vmstate::lock!("tests/locks/uart", reset: Uart::default(), busy: Uart { divider: 12, pending: 1 });
//! ```
//!
//! The folder has one entry for each layout that was ever locked:
//!
//! ```text
//! tests/locks/uart/1/schema.json   what may be on the wire (`vmstate check` compares two of them)
//! tests/locks/uart/1/reset.bin     a whole stream of the example `reset` (`vmstate inspect` shows it)
//! tests/locks/uart/1/busy.bin
//! tests/locks/uart/2/…             the next layout
//! ```
//!
//! The test passes if the streams of each entry load, according to [`compat`](crate::compat) and in fact, and if the present
//! layout is the newest entry and the examples still have the bytes that are kept there. A new layout that breaks nothing, and a
//! new example, are added by running the tests with `BLESS=1` in the environment. Existing files are never overwritten: to drop
//! an entry that was never released, or is no longer supported, delete it.

mod bytes;
mod golden;
mod store;
mod verify;

use std::fmt;
use std::path::PathBuf;

use crate::section::{Section, Sections};

pub use bytes::bytes;

/// Checks that every stream which a device has ever sent still loads; see [`testing`](crate::testing).
///
/// The folder is relative to the caller's package. Examples are `name: expression`, where the expression creates a [`Section`],
/// or the [`Sections`](crate::section::Sections) of a whole machine. The expression runs once for each load, and several times to
/// check that its bytes are always the same. A device alone is locked under its own name, whatever the folder's name; after a
/// rename, the example is a `Sections` with the [older name](crate::section::Sections::add_alias) under which the device still
/// loads. An entry's stream is loaded into the example of the same name, else into the first one.
///
/// A verdict "loads if …" counts as broken, unless `; assume "…"` after the examples names the condition.
///
/// # Panics
/// With all faults found, and how to correct them.
#[macro_export]
macro_rules! lock {
    ($folder:literal $(, $name:ident : $state:expr)+ $(,)? $(; assume $condition:expr)*) => {
        $crate::testing::Lock::new(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", $folder))
            $(.state(::core::stringify!($name), || $state))+
            $(.assume($condition))*
            .check()
    };
}

/// Creates a new instance of an example.
type Maker<'a> = Box<dyn Fn() -> Sections<'a> + 'a>;

/// The implementation of [`lock!`](crate::lock), for folders or names that are known only at run time.
#[must_use = "`check` does the work"]
pub struct Lock<'a> {
    folder: PathBuf,
    states: Vec<(&'a str, Maker<'a>)>,
    assumed: Vec<String>,
    bless: bool,
}

impl<'a> Lock<'a> {
    /// Creates a lock on the files in `folder`. Files are added only if the environment has `BLESS=1`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let bless = std::env::var_os("BLESS").is_some_and(|value| value == "1");
        Self { folder: folder.into(), states: Vec::new(), assumed: Vec::new(), bless }
    }

    /// Adds an example, sent as `name.bin`. `make` is called for each load, and several times to check that its bytes are always
    /// the same.
    pub fn state<S: Lockable<'a>>(mut self, name: &'a str, make: impl Fn() -> S + 'a) -> Self {
        self.states.push((name, Box::new(move || make().into_sections())));
        self
    }

    /// Assumes that `condition`, as a verdict words it, is true.
    pub fn assume(mut self, condition: &str) -> Self {
        self.assumed.push(condition.to_owned());
        self
    }

    /// Sets whether missing files are added, whatever the environment says.
    pub fn bless(mut self, bless: bool) -> Self {
        self.bless = bless;
        self
    }

    /// Runs all checks.
    ///
    /// # Panics
    /// With all faults found, and how to correct them.
    #[track_caller]
    pub fn check(self) {
        if let Err(problems) = self.verify() {
            panic!("the lock on {} does not hold\n\n{problems}", self.folder.display());
        }
    }
}

impl fmt::Debug for Lock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: Vec<_> = self.states.iter().map(|(name, _)| name).collect();
        let Self { folder, assumed, bless, states: _ } = self;
        f.debug_struct("Lock")
            .field("folder", folder)
            .field("states", &states)
            .field("assumed", assumed)
            .field("bless", bless)
            .finish()
    }
}

/// State that can be locked: one device, or the sections of a whole machine.
pub trait Lockable<'a> {
    /// Converts the state into sections; a device alone is added with [`Sections::add`], so its name is locked, too.
    ///
    /// # Panics
    /// If the device's name is not valid for a section.
    fn into_sections(self) -> Sections<'a>;
}

impl<'a, S: Section + 'a> Lockable<'a> for S {
    #[track_caller]
    fn into_sections(self) -> Sections<'a> {
        let mut sections = Sections::new();
        match sections.add(self) {
            Ok(_) => sections,
            Err(error) => panic!("{error}"),
        }
    }
}

impl<'a> Lockable<'a> for Sections<'a> {
    fn into_sections(self) -> Sections<'a> {
        self
    }
}
