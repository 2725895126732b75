//! Places in a description: the paths that verdicts name, and the scopes of predicates.

use std::rc::Rc;

/// Where in the description: the field's path, the array elements on the way, how many loops are around, and if it is in
/// the key of a map.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) path: Rc<str>,
    pub(super) scope: Rc<str>,
    pub(super) depth: usize,
    pub(super) in_key: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { path: "".into(), scope: "".into(), depth: 0, in_key: false }
    }
}

impl Place {
    pub(super) fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path).into() };
        Self { path, ..self.clone() }
    }

    pub(super) fn element(&self, index: u64) -> Self {
        let inside = |of: &str| format!("{of}[{index}]").into();
        Self { path: inside(&self.path), scope: inside(&self.scope), ..self.clone() }
    }

    /// A loop's name is not in the scope: it may be another on the other side.
    pub(super) fn counted(&self) -> Self {
        let inside = |of: &str| format!("{of}[]").into();
        Self { path: inside(&self.path), scope: inside(&self.scope), depth: self.depth + 1, ..self.clone() }
    }
}
