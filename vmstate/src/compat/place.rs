//! Places in a description: the paths that verdicts name.
//!
//! Each place has a unique path, since conditions are identified by it: a name that could be mistaken for part of a path is
//! quoted. So field `"a.b"` is not field `b` of struct `a`.

use std::borrow::Cow;
use std::rc::Rc;

/// A place in the description: the field's path, the number of enclosing loops, whether it is in the key of a map, and whether it
/// is a variant of an enum.
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
        self.inside(&field(name))
    }

    /// A field; among several of that name, the one with this number.
    pub(super) fn numbered_field(&self, name: &str, number: usize) -> Self {
        match number {
            1 => self.field(name),
            _ => self.inside(&format!("{}#{number}", field(name))),
        }
    }

    /// A subsection: most have a `/` in their name, which distinguishes them from fields.
    pub(super) fn subsection(&self, name: &str) -> Self {
        match name.contains('/') && !is_like_path(name) {
            true => self.inside(name),
            false => self.inside(&format!("'{}'", name.escape_debug())),
        }
    }

    fn inside(&self, name: &str) -> Self {
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

fn field(name: &str) -> Cow<'_, str> {
    match name.contains('/') || is_like_path(name) {
        true => format!("{name:?}").into(),
        false => name.into(),
    }
}

/// True if the name contains characters of the path syntax.
fn is_like_path(name: &str) -> bool {
    name.is_empty() || name.contains(['.', '[', ']', '#', '"', '\'', '(', ' '])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Place;

    #[test]
    fn each_place_has_a_unique_path() {
        let top = Place::default();
        let names = ["a", "b", "a.b", "a[0]", "a[]", "a#2", "\"a\"", "'a'", "a/b", "a.b/c", "", "a (from b)"];
        let mut places = Vec::new();
        for name in names {
            let field = top.field(name);
            places.extend([field.element(0), field.element(1), field.counted(), field.field("b"), field.field("")]);
            places.extend([top.subsection(name), top.subsection(name).field("b"), top.numbered_field(name, 2), field]);
        }
        let paths: BTreeSet<_> = places.iter().map(|place| place.path.clone()).collect();
        assert_eq!(paths.len(), places.len(), "{paths:#?}");
        assert_eq!(&*top.field("regs").element(1).field("env.eip").path, "regs[1].\"env.eip\"");
        assert_eq!(&*top.subsection("uart/fifo").field("mode").path, "uart/fifo.mode");
    }
}
