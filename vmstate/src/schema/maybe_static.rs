//! `MaybeStatic`: a value that is either a static constant or owned, so that descriptions can be constants or be parsed.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A shared, immutable value: a constant of the program, or reference-counted memory.
pub enum MaybeStatic<T: ?Sized + 'static> {
    /// A constant.
    Static(&'static T),
    /// A value created at run time.
    Owned(Arc<T>),
}

impl<T: ?Sized> MaybeStatic<T> {
    /// The static value, if it is one.
    pub(crate) const fn constant(&self) -> Option<&'static T> {
        match self {
            Self::Static(value) => Some(value),
            Self::Owned(_) => None,
        }
    }
}

impl<T: ?Sized> Deref for MaybeStatic<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Static(value) => value,
            Self::Owned(value) => value,
        }
    }
}

impl<T: ?Sized> Clone for MaybeStatic<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Static(value) => Self::Static(value),
            Self::Owned(value) => Self::Owned(Arc::clone(value)),
        }
    }
}

impl<T: ?Sized + PartialEq> PartialEq for MaybeStatic<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MaybeStatic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MaybeStatic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> From<T> for MaybeStatic<T> {
    fn from(value: T) -> Self {
        Self::Owned(Arc::new(value))
    }
}

impl From<&str> for MaybeStatic<str> {
    fn from(value: &str) -> Self {
        Self::Owned(value.into())
    }
}

impl<T> From<Vec<T>> for MaybeStatic<[T]> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(values.into())
    }
}
