//! Types of arguments and answers, after QEMU's; a value of another type is refused with QEMU's message.
//!
//! Facts: QEMU's `qapi/qobject-input-visitor.c` and `qapi/qapi-visit-core.c`. A struct's members are checked in their order,
//! then those of the case that its tag selects, and last the members that are left over.

use serde_json::{Map, Value};

/// A type of QMP.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// A string or null, QEMU's alternate `StrOrNull`.
    TextOrNull,
    /// A string or an object with these members: QEMU's alternate of this name.
    TextOrObject(&'static str, Shape),
    /// True or false, or a list of strings: the alternate of this name.
    SwitchOrTexts(&'static str),
    /// Anything.
    Any,
    /// A signed integer of 64 bits.
    Integer,
    /// An unsigned integer of 64 bits. As with QEMU, a negative number is no error of the type.
    Size,
    /// Any number.
    Number,
    /// True or false.
    Switch,
    /// One of these strings.
    Word(Vec<&'static str>),
    /// A list of values of one kind.
    List(Box<Kind>),
    /// Named members.
    Object(Shape),
}

/// The members of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shape {
    pub(super) members: Vec<Member>,
    pub(super) choice: Option<Box<Choice>>,
}

/// One member of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) needed: bool,
}

/// Further members, selected by the value of the needed member `tag`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) tag: &'static str,
    pub(super) cases: Vec<(&'static str, Shape)>,
}

/// A member that is always there.
pub(super) fn needed(name: &'static str, kind: Kind) -> Member {
    Member { name, kind, needed: true }
}

/// A member that may be absent.
pub(super) fn optional(name: &'static str, kind: Kind) -> Member {
    Member { name, kind, needed: false }
}

impl Kind {
    /// A list of values of kind `of`.
    pub(super) fn list(of: Self) -> Self {
        Self::List(Box::new(of))
    }

    /// An object with these members.
    pub(super) fn object(members: impl IntoIterator<Item = Member>) -> Self {
        Self::Object(Shape::of(members))
    }

    /// One of these words.
    pub(super) fn word(words: impl IntoIterator<Item = &'static str>) -> Self {
        Self::Word(words.into_iter().collect())
    }

    /// Checks that `value` is of this kind; `path` leads to it from the command's arguments, `name` is its own name.
    ///
    /// # Errors
    /// QEMU's message.
    pub(super) fn check(&self, value: &Value, path: &str, name: &str) -> Result<(), String> {
        let wrong = |expected: &str| Err(format!("Invalid parameter type for '{path}', expected: {expected}"));
        match (self, value) {
            (Self::Text, Value::String(_))
            | (Self::TextOrNull, Value::String(_) | Value::Null)
            | (Self::TextOrObject(..), Value::String(_))
            | (Self::Any, _)
            | (Self::Number, Value::Number(_))
            | (Self::Switch | Self::SwitchOrTexts(_), Value::Bool(_)) => Ok(()),
            (Self::Integer, value) if value.is_i64() => Ok(()),
            (Self::Size, value) if value.is_i64() || value.is_u64() => Ok(()),
            (Self::Word(words), Value::String(word)) => match words.contains(&word.as_str()) {
                true => Ok(()),
                false => Err(format!("Parameter '{name}' does not accept value '{word}'")),
            },
            (Self::List(of), Value::Array(list)) => {
                list.iter().enumerate().try_for_each(|(index, one)| of.check(one, &format!("{path}[{index}]"), "null"))
            }
            (Self::SwitchOrTexts(_), list @ Value::Array(_)) => Self::list(Self::Text).check(list, path, name),
            (Self::Object(shape) | Self::TextOrObject(_, shape), Value::Object(members)) => shape.check(members, path),
            (Self::Size, _) => Err(format!("Parameter '{path}' expects uint64")),
            (Self::TextOrNull, _) => wrong("StrOrNull"),
            (Self::TextOrObject(alternate, _) | Self::SwitchOrTexts(alternate), _) => {
                Err(format!("Invalid parameter type for '{name}', expected: {alternate}"))
            }
            (Self::Text | Self::Word(_), _) => wrong("string"),
            (Self::Integer, _) => wrong("integer"),
            (Self::Number, _) => wrong("number"),
            (Self::Switch, _) => wrong("boolean"),
            (Self::List(_), _) => wrong("array"),
            (Self::Object(_), _) => wrong("object"),
        }
    }
}

impl Shape {
    /// Shape with these members.
    pub(super) fn of(members: impl IntoIterator<Item = Member>) -> Self {
        Self { members: members.into_iter().collect(), choice: None }
    }

    /// Shape with a member `tag`, whose value selects the further members.
    pub(super) fn by(tag: &'static str, cases: impl IntoIterator<Item = (&'static str, Shape)>) -> Self {
        let cases: Vec<_> = cases.into_iter().collect();
        let words = Kind::word(cases.iter().map(|(word, _)| *word));
        Self { members: vec![needed(tag, words)], choice: Some(Box::new(Choice { tag, cases })) }
    }

    /// Like [`by`](Self::by), with further members in all cases.
    pub(super) fn and(mut self, members: impl IntoIterator<Item = Member>) -> Self {
        self.members.extend(members);
        self
    }

    /// Checks that `given` has all needed members and no unknown ones; `path` leads to it, and is empty for the arguments
    /// themselves.
    ///
    /// # Errors
    /// QEMU's message.
    pub(super) fn check(&self, given: &Map<String, Value>, path: &str) -> Result<(), String> {
        let mut known = Vec::new();
        self.check_members(given, path, &mut known)?;
        match given.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(format!("Parameter '{}' is unexpected", within(path, name))),
        }
    }

    fn check_members(
        &self,
        given: &Map<String, Value>,
        path: &str,
        known: &mut Vec<&'static str>,
    ) -> Result<(), String> {
        for member in &self.members {
            known.push(member.name);
            let path = within(path, member.name);
            match given.get(member.name) {
                Some(value) => member.kind.check(value, &path, member.name)?,
                None if member.needed => return Err(format!("Parameter '{path}' is missing")),
                None => {}
            }
        }
        let Some(Choice { tag, cases }) = self.choice.as_deref() else { return Ok(()) };
        let chosen = cases.iter().find(|(word, _)| given.get(*tag).is_some_and(|given| given == word));
        chosen.map_or(Ok(()), |(_, shape)| shape.check_members(given, path, known))
    }
}

fn within(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}
