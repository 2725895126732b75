//! Maps and sets: a number of entries, then the entries as a list of keys and values (migration/vmstate-types.c, `put_gtree`).
//! They are sorted by key, so that equal maps have equal bytes. The caller supplies the functions that save and load a key or a
//! value.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::mem::size_of;

use super::super::Wire;
use super::super::coded::Coded;
use super::super::hook::HookError;
use super::super::numbers::at_most;
use super::super::support::KindOf;
use super::sequence::{make_via, more};
use crate::codec::mark::{MORE, NO_MORE};
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, MaybeStatic};

/// A collection of keys with values whose entries can be converted one by one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no keys and values that `via` or `with` could make: that needs a `BTreeMap`, a `HashMap` or a set",
    note = "keys must implement `Ord`"
)]
pub trait Entries {
    /// The key, by which entries are sorted on the wire.
    type Key: Ord;
    /// The value of each key; a set has none.
    type Value;
    /// Takes all entries out.
    fn take(&mut self) -> BTreeMap<Self::Key, Self::Value>;
    /// Replaces all entries by these.
    fn put(&mut self, entries: BTreeMap<Self::Key, Self::Value>);

    /// Appends the entries in the encoding of `map`.
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

    /// Replaces the entries by those of `input`, in the encoding of `map`. `load_value` gets the value that the map holds under
    /// the key.
    fn load(
        &mut self,
        max: usize,
        input: &mut Reader<'_>,
        load_key: impl FnMut(&mut Reader<'_>) -> Result<Self::Key>,
        load_value: impl FnMut(&mut Option<Self::Value>, &mut Reader<'_>) -> Result<()>,
    ) -> Result<()> {
        let (mut held, mut loaded) = (self.take(), BTreeMap::new());
        let verdict = load_entries(&mut held, &mut loaded, max, input, load_key, load_value);
        if verdict.is_err() {
            // Entries that were not loaded stay, because an undo needs their values, too.
            loaded.append(&mut held);
        }
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

/// Appends a key in its own encoding.
pub fn save_key<K: Wire + Clone>(key: &K, out: &mut Writer) -> Result<()> {
    key.clone().save(out)
}

/// Loads the next key in its own encoding.
pub fn load_key<K: Wire + Default>(input: &mut Reader<'_>) -> Result<K> {
    let mut key = K::default();
    key.load(input)?;
    Ok(key)
}

/// Loads the next value in its own encoding, in place if one is `held`.
pub fn load_value<V: Wire + Default>(held: &mut Option<V>, input: &mut Reader<'_>) -> Result<()> {
    held.get_or_insert_default().load(input)
}

/// Loads the next value as a `P` and converts it.
pub fn load_value_via<V, P>(held: &mut Option<V>, input: &mut Reader<'_>) -> Result<()>
where
    P: Wire + Default + for<'a> From<&'a V>,
    V: TryFrom<P, Error: Into<HookError>>,
{
    *held = Some(make_via(held.as_ref(), input)?);
    Ok(())
}

/// Keys and values, at most this many entries.
#[derive(Debug)]
pub struct Map(pub usize);

macro_rules! map {
    ($([$($generics:tt)*] $type:ty, $value:ty, $remembered:expr;)*) => {$(
        /// The value of an existing key is loaded in place; a new value starts from its default.
        impl<K: Wire + Default + Ord + Clone $($generics)*> Coded<Map> for $type {
            type Undo = Vec<(K, <$value as Wire>::Undo)>;
            const KIND: Kind =
                Kind::Map(MaybeStatic::Static(KindOf::<K>::REF), MaybeStatic::Static(KindOf::<$value>::REF));

            fn save(&mut self, Map(max): Map, out: &mut Writer) -> Result<()> {
                Entries::save(self, max, out, save_key, <$value>::save)
            }

            fn load(&mut self, Map(max): Map, input: &mut Reader<'_>) -> Result<()> {
                Entries::load(self, max, input, load_key, load_value)
            }

            fn remember(&self) -> Self::Undo {
                self.iter().map($remembered).collect()
            }

            fn undo(&mut self, undo: Self::Undo) {
                let mut held = Entries::take(self);
                let mut before = BTreeMap::new();
                for (key, undo) in undo {
                    let mut value = held.remove(&key).unwrap_or_default();
                    value.undo(undo);
                    before.insert(key, value);
                }
                self.put(before);
            }
        }
    )*};
}

map! {
    [, V: Wire + Default] BTreeMap<K, V>, V, |(key, value)| (key.clone(), value.remember());
    [+ Hash, V: Wire + Default, S: BuildHasher] HashMap<K, V, S>, V, |(key, value)| (key.clone(), value.remember());
    [] BTreeSet<K>, Nothing, |key| (key.clone(), ());
    [+ Hash, S: BuildHasher] HashSet<K, S>, Nothing, |key| (key.clone(), ());
}

/// The value type of a set: no bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Wire for Nothing {
    type Undo = ();
    const KIND: Kind = Kind::Unused(0);

    fn save(&mut self, _out: &mut Writer) -> Result<()> {
        Ok(())
    }

    fn load(&mut self, _input: &mut Reader<'_>) -> Result<()> {
        Ok(())
    }

    fn remember(&self) {}

    fn undo(&mut self, (): ()) {}
}

fn save_entries<K, V>(
    entries: &mut BTreeMap<K, V>,
    max: usize,
    out: &mut Writer,
    mut save_key: impl FnMut(&K, &mut Writer) -> Result<()>,
    mut save_value: impl FnMut(&mut V, &mut Writer) -> Result<()>,
) -> Result<()> {
    let count = at_most(entries.len(), max)?;
    out.outcome(count);
    out.u32(count);
    for (index, (key, value)) in entries.iter_mut().enumerate() {
        out.u8(MORE);
        save_key(key, out).map_err(|error| error.in_field("key").in_element(index))?;
        save_value(value, out).map_err(|error| error.in_field("value").in_element(index))?;
    }
    out.u8(NO_MORE);
    Ok(())
}

/// Loads into `loaded`. If `held` has a value under the key, the value is moved out and passed to `load_value`.
fn load_entries<K: Ord, V>(
    held: &mut BTreeMap<K, V>,
    loaded: &mut BTreeMap<K, V>,
    max: usize,
    input: &mut Reader<'_>,
    mut load_key: impl FnMut(&mut Reader<'_>) -> Result<K>,
    mut load_value: impl FnMut(&mut Option<V>, &mut Reader<'_>) -> Result<()>,
) -> Result<()> {
    let offset = input.offset();
    let announced = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
    if announced > max {
        let message = format!("it has {announced} entries, from 0 to {max} are allowed");
        return Err(Error::new(ErrorKind::Malformed, message).at(offset));
    }
    for index in 0..announced {
        if !more(input)? {
            return Err(input.malformed(format!("ends after {index} of {announced} entries")));
        }
        load_entry(held, loaded, input, &mut load_key, &mut load_value).map_err(|error| error.in_element(index))?;
    }
    if more(input)? {
        return Err(input.malformed(format!("more than the {announced} announced entries")));
    }
    Ok(())
}

/// QEMU takes keys in any order, and the last of equal keys (`get_gtree`); it writes them in order.
fn load_entry<K: Ord, V>(
    held: &mut BTreeMap<K, V>,
    loaded: &mut BTreeMap<K, V>,
    input: &mut Reader<'_>,
    load_key: impl FnOnce(&mut Reader<'_>) -> Result<K>,
    load_value: impl FnOnce(&mut Option<V>, &mut Reader<'_>) -> Result<()>,
) -> Result<()> {
    // The nodes of a B-tree are at least half full.
    input.charge(2 * size_of::<(K, V)>())?;
    let offset = input.offset();
    let key = load_key(input).map_err(|error| error.in_field("key"))?;
    if input.strictness() == Strictness::Strict
        && let Some((last, _)) = loaded.last_key_value()
        && key <= *last
    {
        let message = if key == *last { "the key comes twice" } else { "the keys are not in order" };
        return Err(Error::new(ErrorKind::Malformed, message).in_field("key").at(offset));
    }
    let mut value = held.remove(&key);
    let verdict = load_value(&mut value, input).map_err(|error| error.in_field("value"));
    loaded.extend(value.map(|value| (key, value)));
    verdict
}
