//! Interns run-time conditions as small ids, so that states are cheap to compare and copy.

use std::collections::HashMap;
use std::rc::Rc;

use super::verdict::Subject;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id(usize);

/// All subjects of a writer and a reader.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    all: Vec<Rc<Subject>>,
    ids: HashMap<Rc<Subject>, Id>,
}

impl Subjects {
    pub(super) fn id(&mut self, subject: Subject) -> Id {
        if let Some(known) = self.ids.get(&subject) {
            return *known;
        }
        let (id, subject) = (Id(self.all.len()), Rc::new(subject));
        self.all.push(Rc::clone(&subject));
        self.ids.insert(subject, id);
        id
    }

    /// True if both outcomes cannot occur together, because no value of their common field satisfies both.
    pub(super) fn exclude_each_other(&self, (a, a_holds): (Id, bool), (b, b_holds): (Id, bool)) -> bool {
        let (Some(Subject::Value { field, .. }), Some(Subject::Value { field: other, .. })) =
            (self.get(a), self.get(b))
        else {
            return false;
        };
        let numbers = |id, holds| match self.get(id) {
            Some(Subject::Value { taken, refused, .. }) => Some(if holds { taken } else { refused }),
            _ => None,
        };
        let (ours, theirs) = (numbers(a, a_holds), numbers(b, b_holds));
        field == other && ours.zip(theirs).is_some_and(|(ours, theirs)| ours.and(theirs).is_empty())
    }

    pub(super) fn get(&self, id: Id) -> Option<&Subject> {
        self.all.get(id.0).map(|subject| &**subject)
    }
}
