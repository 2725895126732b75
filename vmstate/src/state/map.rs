//! Maps: a number of entries, then as a list, each a key and its value (migration/vmstate-types.c, `put_gtree`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::mem::size_of;

use super::Wire;
use super::entries::{load_key, load_value, save_key};
use super::list::more;
use super::numbers::at_most;
use super::support::KindOf;
use crate::codec::mark::{MORE, NO_MORE};
use crate::codec::{Reader, Strictness, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Kind, MaybeStatic};

/// What `#[vmstate(map)]` can be put on.
#[diagnostic::on_unimplemented(
    message = "`map` needs a `BTreeMap`, a `HashMap` or a set of something that can be migrated, `{Self}` is not",
    note = "keys and values must implement `vmstate::Wire` and `Default`, keys also `Ord` and `Clone`"
)]
pub trait Map {
    /// All that is needed to put back the value.
    type Undo;
    /// What the bytes are.
    const KIND: Kind;

    /// Appends all entries.
    fn save(&mut self, max: usize, out: &mut Writer) -> Result<()>;
    /// Replaces the value by the entries of `input`.
    fn load(&mut self, max: usize, input: &mut Reader<'_>) -> Result<()>;
    /// Copies out what a load or a hook may change.
    fn remember(&self) -> Self::Undo;
    /// Puts back what `remember` copied.
    fn undo(&mut self, undo: Self::Undo);
}

/// The value of a key that is there is loaded in place, a new one starts from its default.
impl<K: Wire + Default + Ord + Clone, V: Wire + Default> Map for BTreeMap<K, V> {
    type Undo = Vec<(K, V::Undo)>;
    const KIND: Kind = Kind::Map(MaybeStatic::Static(KindOf::<K>::REF), MaybeStatic::Static(KindOf::<V>::REF));

    fn save(&mut self, max: usize, out: &mut Writer) -> Result<()> {
        save_entries(self, max, out, save_key, V::save)
    }

    fn load(&mut self, max: usize, input: &mut Reader<'_>) -> Result<()> {
        let mut loaded = Self::new();
        let verdict = load_entries(self, &mut loaded, max, input, load_key, load_value);
        if verdict.is_ok() {
            self.clear();
        }
        // After an error too: an undo needs the values that were taken out.
        self.append(&mut loaded);
        verdict
    }

    fn remember(&self) -> Self::Undo {
        self.iter().map(|(key, value)| (key.clone(), value.remember())).collect()
    }

    fn undo(&mut self, undo: Self::Undo) {
        let mut loaded = std::mem::take(self);
        for (key, undo) in undo {
            let mut value = loaded.remove(&key).unwrap_or_default();
            value.undo(undo);
            self.insert(key, value);
        }
    }
}

/// As a `BTreeMap`: entries are in the order of the keys, so that equal maps have equal bytes.
impl<K: Wire + Default + Ord + Hash + Clone, V: Wire + Default, S: BuildHasher> Map for HashMap<K, V, S> {
    type Undo = Vec<(K, V::Undo)>;
    const KIND: Kind = <BTreeMap<K, V> as Map>::KIND;

    fn save(&mut self, max: usize, out: &mut Writer) -> Result<()> {
        ordered(self, |map| map.save(max, out))
    }

    fn load(&mut self, max: usize, input: &mut Reader<'_>) -> Result<()> {
        ordered(self, |map| map.load(max, input))
    }

    fn remember(&self) -> Self::Undo {
        self.iter().map(|(key, value)| (key.clone(), value.remember())).collect()
    }

    fn undo(&mut self, undo: Self::Undo) {
        ordered(self, |map| map.undo(undo));
    }
}

/// What `act` does with the map's entries in order.
fn ordered<K: Ord + Hash, V, S: BuildHasher, R>(
    map: &mut HashMap<K, V, S>,
    act: impl FnOnce(&mut BTreeMap<K, V>) -> R,
) -> R {
    let mut ordered = map.drain().collect();
    let outcome = act(&mut ordered);
    map.extend(ordered);
    outcome
}

/// What a set has in place of a map's value: no bytes.
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

macro_rules! set {
    ($($set:ty, [$($hash:ident: $hasher:ident)?];)*) => {$(
        /// A map of keys to nothing.
        impl<K: Wire + Default + Ord + Clone $(+ $hash, S: $hasher)?> Map for $set {
            type Undo = Vec<K>;
            const KIND: Kind = <BTreeMap<K, Nothing> as Map>::KIND;

            fn save(&mut self, max: usize, out: &mut Writer) -> Result<()> {
                let mut map: BTreeMap<K, Nothing> = self.iter().map(|key| (key.clone(), Nothing)).collect();
                map.save(max, out)
            }

            fn load(&mut self, max: usize, input: &mut Reader<'_>) -> Result<()> {
                let mut map: BTreeMap<K, Nothing> = BTreeMap::new();
                map.load(max, input)?;
                self.clear();
                self.extend(map.into_keys());
                Ok(())
            }

            fn remember(&self) -> Vec<K> {
                self.iter().cloned().collect()
            }

            fn undo(&mut self, undo: Vec<K>) {
                self.clear();
                self.extend(undo);
            }
        }
    )*};
}

set! {
    BTreeSet<K>, [];
    HashSet<K, S>, [Hash: BuildHasher];
}

pub(super) fn save_entries<K, V>(
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

/// Loads into `loaded`; a value that `held` has under the key is taken out, and given to `load_value`.
pub(super) fn load_entries<K: Ord, V>(
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
        return Err(input.malformed(format!("more than the {announced} entries that it said")));
    }
    Ok(())
}

/// QEMU takes keys in any order, and of equal ones the last (`get_gtree`); it writes them in order.
fn load_entry<K: Ord, V>(
    held: &mut BTreeMap<K, V>,
    loaded: &mut BTreeMap<K, V>,
    input: &mut Reader<'_>,
    load_key: impl FnOnce(&mut Reader<'_>) -> Result<K>,
    load_value: impl FnOnce(&mut Option<V>, &mut Reader<'_>) -> Result<()>,
) -> Result<()> {
    // A tree's nodes are at least half full.
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
