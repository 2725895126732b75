//! Locks on formats, for the tests of who embeds the library: what a release sent is kept beside the tests, and a
//! change after which it would no longer load fails there.
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
//! The test passes if each entry's streams load, by the verdict of [`compat`](crate::compat) and in fact, and if today's
//! layout is the newest entry and today's bytes of the examples are those kept there. A new layout that breaks nothing,
//! and a new example, is added by running the tests with `BLESS=1` in the environment. Nothing that is there is ever
//! overwritten: who knows that an entry was never released, or is dropped on purpose, deletes it.

mod bytes;
mod golden;
mod store;
mod verify;

use std::fmt;
use std::path::PathBuf;

use crate::section::{Section, Sections};

pub use bytes::bytes;

/// Checks that all that a device ever sent still loads; see [`testing`](crate::testing).
///
/// The folder is relative to the package of the caller. Examples are `name: expression`, where the expression makes a
/// [`Section`], or a whole machine's [`Sections`](crate::section::Sections). It runs once for each load, and some
/// times to see that its bytes are the same each time. A
/// device alone is locked under its own name, whatever the folder is called; after a rename it is an example as
/// `Sections`, with the [older name](crate::section::Sections::add_alias) under which it still loads.
/// An entry's stream is loaded into the example of its own name, else into the first one.
///
/// A verdict "loads if …" counts as broken, unless `; assume "…"` behind the examples names the condition.
///
/// # Panics
/// With all that is wrong, and what to do.
#[macro_export]
macro_rules! lock {
    ($folder:literal $(, $name:ident : $state:expr)+ $(,)? $(; assume $condition:expr)*) => {
        $crate::testing::Lock::new(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", $folder))
            $(.state(::core::stringify!($name), || $state))+
            $(.assume($condition))*
            .check()
    };
}

/// Makes an example anew.
type Maker<'a> = Box<dyn Fn() -> Sections<'a> + 'a>;

/// What [`lock!`](crate::lock) is made of, for folders or names that are known at run time only.
#[must_use = "`check` does the work"]
pub struct Lock<'a> {
    folder: PathBuf,
    states: Vec<(&'a str, Maker<'a>)>,
    assumed: Vec<String>,
    bless: bool,
}

impl<'a> Lock<'a> {
    /// On what is kept in `folder`. Something is added to it only if the environment has `BLESS=1`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let bless = std::env::var_os("BLESS").is_some_and(|value| value == "1");
        Self { folder: folder.into(), states: Vec::new(), assumed: Vec::new(), bless }
    }

    /// An example, sent as `name.bin`. `make` is called for each load, and some times to see that
    /// its bytes are the same each time.
    pub fn state<S: Lockable<'a>>(mut self, name: &'a str, make: impl Fn() -> S + 'a) -> Self {
        self.states.push((name, Box::new(move || make().into_sections())));
        self
    }

    /// Takes `condition`, in the words of a verdict, for true.
    pub fn assume(mut self, condition: &str) -> Self {
        self.assumed.push(condition.to_owned());
        self
    }

    /// Adds what is not kept yet, or does not, whatever the environment says.
    pub fn bless(mut self, bless: bool) -> Self {
        self.bless = bless;
        self
    }

    /// Checks all of it.
    ///
    /// # Panics
    /// With all that is wrong, and what to do.
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

/// What can be locked: one device, or the sections of a whole machine.
pub trait Lockable<'a> {
    /// The sections; a device alone becomes the one that [`Sections::add`] makes of it, so its name is locked, too.
    ///
    /// # Panics
    /// If the device has no name that a section can have.
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
