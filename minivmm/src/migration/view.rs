//! A section that is a part of something shared: a device behind its lock, or one struct of the hypervisor's state.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use vmstate::codec::{Reader, Writer};
use vmstate::schema::Description;
use vmstate::section::SectionRules;
use vmstate::{Section, VmState};

/// `part` of what `whole` holds, locked for each save and load.
pub(super) struct View<S: ?Sized, F> {
    whole: Arc<Mutex<S>>,
    part: F,
}

impl<S: ?Sized, F> View<S, F> {
    pub(super) fn new<T>(whole: &Arc<Mutex<S>>, part: F) -> Self
    where
        F: Fn(&mut S) -> &mut T,
    {
        Self { whole: Arc::clone(whole), part }
    }
}

impl<S: ?Sized, F> fmt::Debug for View<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

/// The part's type, from the function that finds it.
pub(super) trait Projection<S: ?Sized> {
    type Target: VmState + Section;
    fn of<'a>(&self, whole: &'a mut S) -> &'a mut Self::Target;
}

impl<S: ?Sized, T: VmState + Section, F: Fn(&mut S) -> &mut T> Projection<S> for F {
    type Target = T;

    fn of<'a>(&self, whole: &'a mut S) -> &'a mut T {
        self(whole)
    }
}

impl<S: Send + ?Sized, F: Projection<S> + Send> Section for View<S, F> {
    fn description(&self) -> &'static Description {
        F::Target::DESCRIPTION
    }

    fn rules(&self) -> SectionRules {
        F::Target::SECTION
    }

    fn is_needed(&self) -> bool {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        VmState::is_needed(self.part.of(&mut whole))
    }

    fn save(&mut self, out: &mut Writer) -> vmstate::Result<()> {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        Section::save(self.part.of(&mut whole), out)
    }

    fn save_at(&mut self, out: &mut Writer, version: u32) -> vmstate::Result<()> {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        Section::save_at(self.part.of(&mut whole), out, version)
    }

    fn load(&mut self, input: &mut Reader<'_>, version: u32) -> vmstate::Result<()> {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        Section::load(self.part.of(&mut whole), input, version)
    }
}
