//! `via` and `with` on the keys and values of a map or set: each is made for the wire, and turned back, alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, Hash};

use super::Wire;
use super::each::make_via;
use super::hook::HookError;
use super::map::{Nothing, load_entries, save_entries};
use crate::codec::{Reader, Writer};
use crate::error::Result;

/// A collection of keys with values that can be made one by one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no keys and values that `via` or `with` could make: that needs a `BTreeMap`, a `HashMap` or a set",
    note = "keys must implement `Ord`"
)]
pub trait Entries {
    /// What it is sorted by on the wire.
    type Key: Ord;
    /// What each key has; of a set, nothing.
    type Value;
    /// All entries, taken out.
    fn take(&mut self) -> BTreeMap<Self::Key, Self::Value>;
    /// Has these entries and no others.
    fn put(&mut self, entries: BTreeMap<Self::Key, Self::Value>);

    /// Appends the entries as `map` does.
    fn save(
        &mut self,
        max: usize,
        out: &mut Writer,
        save_key: impl FnMut(&Self::Key, &mut Writer) -> Result<()>,
        save_value: impl FnMut(&mut Self::Value, &mut Writer) -> Result<()>,
    ) -> Result<()> {
        let mut entries = self.take();
        let saved = save_entries(&mut entries, max, out, save_key, save_value);
        self.put(entries);
        saved
    }

    /// Replaces the entries by those of `input`, as `map` does. `load_value` gets what the map holds under the key.
    fn load(
        &mut self,
        max: usize,
        input: &mut Reader<'_>,
        load_key: impl FnMut(&mut Reader<'_>) -> Result<Self::Key>,
        load_value: impl FnMut(&mut Option<Self::Value>, &mut Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        let (mut held, mut loaded) = (self.take(), BTreeMap::new());
        let verdict = load_entries(&mut held, &mut loaded, max, input, load_key, load_value);
        self.put(loaded);
        verdict
    }
}

impl<K: Ord, V> Entries for BTreeMap<K, V> {
    type Key = K;
    type Value = V;

    fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    fn put(&mut self, entries: Self) {
        *self = entries;
    }
}

impl<K: Ord + Hash, V, S: BuildHasher> Entries for HashMap<K, V, S> {
    type Key = K;
    type Value = V;

    fn take(&mut self) -> BTreeMap<K, V> {
        self.drain().collect()
    }

    fn put(&mut self, entries: BTreeMap<K, V>) {
        self.clear();
        self.extend(entries);
    }
}

impl<K: Ord> Entries for BTreeSet<K> {
    type Key = K;
    type Value = Nothing;

    fn take(&mut self) -> BTreeMap<K, Nothing> {
        std::mem::take(self).into_iter().map(|key| (key, Nothing)).collect()
    }

    fn put(&mut self, entries: BTreeMap<K, Nothing>) {
        *self = entries.into_keys().collect();
    }
}

impl<K: Ord + Hash, S: BuildHasher> Entries for HashSet<K, S> {
    type Key = K;
    type Value = Nothing;

    fn take(&mut self) -> BTreeMap<K, Nothing> {
        self.drain().map(|key| (key, Nothing)).collect()
    }

    fn put(&mut self, entries: BTreeMap<K, Nothing>) {
        self.clear();
        self.extend(entries.into_keys());
    }
}

/// Appends a key as it is.
pub fn save_key<K: Wire + Clone>(key: &K, out: &mut Writer) -> Result<()> {
    key.clone().save(out)
}

/// The next key as it is.
pub fn load_key<K: Wire + Default>(input: &mut Reader<'_>) -> Result<K> {
    let mut key = K::default();
    key.load(input)?;
    Ok(key)
}

/// The next value as it is, in place if one is `held`.
pub fn load_value<V: Wire + Default>(held: &mut Option<V>, input: &mut Reader<'_>) -> Result<()> {
    held.get_or_insert_default().load(input)
}

/// The next value, from the `P` that stands for it.
pub fn load_value_via<V, P>(held: &mut Option<V>, input: &mut Reader<'_>) -> Result<()>
where
    P: Wire + Default + for<'a> From<&'a V>,
    V: TryFrom<P, Error: Into<HookError>>,
{
    *held = Some(make_via(held.as_ref(), input)?);
    Ok(())
}
