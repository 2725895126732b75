//! Values of parameters, as a user reads and writes them.

use std::borrow::Cow;
use std::time::Duration;

#[cfg(doc)]
use super::ParameterUnit;

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParameterValue {
    /// A value in [`ParameterUnit::Milliseconds`].
    Time(Duration),
    /// A value in [`ParameterUnit::BytesPerSecond`], [`ParameterUnit::Percent`], [`ParameterUnit::Count`], [`ParameterUnit::Between`] or
    /// [`ParameterUnit::CacheBytes`].
    Number(u64),
    /// A value of [`ParameterUnit::Flag`] or [`ParameterUnit::Switch`].
    Flag(bool),
    /// A value of [`ParameterUnit::Word`].
    Word(Cow<'static, str>),
}

impl From<Duration> for ParameterValue {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<u64> for ParameterValue {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for ParameterValue {
    fn from(on: bool) -> Self {
        Self::Flag(on)
    }
}

impl ParameterValue {
    pub(super) fn small(number: u8) -> Self {
        Self::Number(number.into())
    }

    pub(super) fn word(word: &'static str) -> Self {
        Self::Word(Cow::Borrowed(word))
    }

    pub(super) fn time(&self) -> Option<Duration> {
        if let Self::Time(time) = self { Some(*time) } else { None }
    }

    pub(super) fn number(&self) -> Option<u64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    pub(super) fn as_small(&self) -> Option<u8> {
        u8::try_from(self.number()?).ok()
    }

    pub(super) fn flag(&self) -> Option<bool> {
        if let Self::Flag(on) = self { Some(*on) } else { None }
    }

    pub(super) fn as_word(&self) -> Option<&str> {
        if let Self::Word(word) = self { Some(word) } else { None }
    }

    /// The element of `all` with this word.
    pub(super) fn one_of<T: Copy>(&self, all: &[T], word: fn(T) -> &'static str) -> Option<T> {
        let given = self.as_word()?;
        all.iter().copied().find(|&one| word(one) == given)
    }
}
