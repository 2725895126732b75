//! Places in a description: the paths that verdicts name.

use std::rc::Rc;

/// Where in the description: the field's path, how many loops are around, if it is in the key of a map, and if it is a variant
/// of an enum.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) path: Rc<str>,
    pub(super) depth: usize,
    pub(super) in_key: bool,
    pub(super) is_variant: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { path: "".into(), depth: 0, in_key: false, is_variant: false }
    }
}

impl Place {
    pub(super) fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path).into() };
        Self { path, is_variant: false, ..self.clone() }
    }

    pub(super) fn element(&self, index: u64) -> Self {
        Self { path: format!("{}[{index}]", self.path).into(), ..self.clone() }
    }

    /// Any element of a loop.
    pub(super) fn counted(&self) -> Self {
        Self { path: format!("{}[]", self.path).into(), depth: self.depth + 1, ..self.clone() }
    }
}
