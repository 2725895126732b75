//! Items: bytes of one meaning. Also how a reader interprets the bytes of a writer's item.

use std::fmt;
use std::rc::Rc;

use super::values::Values;
use super::verdict::{Difference, Reason, Subject};
use crate::schema::Limit;
use crate::schema::program::{self, Encoding, Framing};

/// The meaning of an item's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Bool,
    Unsigned(u64),
    Signed(u64),
    Timer,
    Double,
    /// Words of a bitmap.
    Bits,
    /// A value of this size in the host's memory: a dump of QEMU says no more.
    Opaque(u64),
    Raw,
    Unused,
}

impl Meaning {
    /// The width of one integer in bytes; `None` if the bytes are not an integer.
    const fn width(self) -> Option<u64> {
        match self {
            Self::Bool => Some(1),
            Self::Timer | Self::Double | Self::Bits => Some(8),
            Self::Unsigned(width) | Self::Signed(width) | Self::Opaque(width) => Some(width),
            Self::Raw | Self::Unused => None,
        }
    }

    const fn is_signed(self) -> bool {
        matches!(self, Self::Signed(_) | Self::Timer)
    }

    const fn is_opaque(self) -> bool {
        matches!(self, Self::Opaque(_))
    }
}

/// The values that a reader accepts and a writer sends.
#[derive(Clone, Debug, PartialEq)]
enum Allowed {
    Any,
    These(Rc<Values>),
    /// The value that the machine is configured to have.
    Equal,
    /// At most the value that the machine is configured to have.
    AtMost,
}

/// A number of bytes of one meaning: one integer or an array of integers.
#[derive(Clone, Debug)]
pub(super) struct Item {
    meaning: Meaning,
    allowed: Allowed,
    pub(super) bytes: u64,
    /// True if the item is in a map's key, whose order matters.
    pub(super) in_key: bool,
}

impl Item {
    pub(super) const fn raw_byte() -> Self {
        Self { meaning: Meaning::Raw, allowed: Allowed::Any, bytes: 1, in_key: false }
    }

    /// Words of a bitmap.
    pub(super) const fn words(words: u64) -> Self {
        Self { meaning: Meaning::Bits, allowed: Allowed::Any, bytes: words * 8, in_key: false }
    }

    /// The last word of a bitmap, of which only this many bits are used: the others are 0.
    pub(super) fn last_word(bits: u64) -> Self {
        let values = Values::all(8, false).limited(&Limit::Within(0, (1 << bits) - 1));
        Self { allowed: Allowed::These(values.into()), ..Self::words(u64::from(bits > 0)) }
    }

    /// The item of an encoding whose bytes have one meaning throughout and a fixed size.
    pub(super) fn of(encoding: &Encoding<'_>) -> Option<Self> {
        match encoding {
            Encoding::Item(item) => Self::of_item(item),
            Encoding::Repeat(Framing::Fixed(count), element) => {
                let element = Self::of(element)?;
                // Sizes that no machine has are all equal, but must still be whole elements.
                let most = || u64::MAX / element.bytes * element.bytes;
                let bytes = element.bytes.checked_mul(*count).unwrap_or_else(most);
                Some(Self { bytes, ..element })
            }
            _ => None,
        }
    }

    fn of_item(item: &program::Item<'_>) -> Option<Self> {
        let bytes = item.size?;
        let meaning = match item.meaning {
            program::Meaning::Bool => Meaning::Bool,
            program::Meaning::Unsigned => Meaning::Unsigned(bytes),
            program::Meaning::Signed => Meaning::Signed(bytes),
            program::Meaning::Timer => Meaning::Timer,
            program::Meaning::Double => Meaning::Double,
            program::Meaning::Bitmap(bits) if bits?.is_multiple_of(64) => Meaning::Bits,
            program::Meaning::Bitmap(_) | program::Meaning::Codec(_) => return None,
            program::Meaning::Raw => Meaning::Raw,
            program::Meaning::Unused => Meaning::Unused,
            program::Meaning::Opaque(_) => Meaning::Opaque(bytes),
        };
        let allowed = match meaning {
            Meaning::Bool => Allowed::These(Values::single(0).or(&Values::single(1)).into()),
            _ => Allowed::Any,
        };
        let all = Self { meaning, allowed, bytes, in_key: false };
        let allowed = match item.limit {
            None => return Some(all),
            Some(Limit::Equal) => Allowed::Equal,
            Some(Limit::AtMostCurrent) => Allowed::AtMost,
            Some(limit @ (Limit::NotZero | Limit::Scalar | Limit::Within(..) | Limit::OneOf(_))) => {
                match all.values() {
                    Some(values) => Allowed::These(values.limited(limit).into()),
                    None => return Some(all),
                }
            }
        };
        Some(Self { allowed, ..all })
    }

    /// True if the whole item is one integer.
    pub(super) fn is_one_integer(&self) -> bool {
        let is_integer = matches!(self.meaning, Meaning::Bool | Meaning::Unsigned(_) | Meaning::Signed(_));
        is_integer && self.meaning.width() == Some(self.bytes)
    }

    /// The values that each integer can have; `None` if the item is not made of integers.
    fn values(&self) -> Option<Rc<Values>> {
        match &self.allowed {
            Allowed::These(values) => Some(Rc::clone(values)),
            // No writer sends a negative value.
            Allowed::AtMost => {
                self.meaning.width().map(|width| Values::not_negative(width, self.meaning.is_signed()).into())
            }
            _ => self.meaning.width().map(|width| Values::all(width, self.meaning.is_signed()).into()),
        }
    }

    /// The largest value of the integer, clamped to `u64`.
    pub(super) fn highest(&self) -> u64 {
        let Some(values) = self.values() else { return u64::MAX };
        let highest = values.ranges().last().map_or(0, |(_, last)| (*last).max(0));
        u64::try_from(highest).unwrap_or(u64::MAX)
    }

    /// The cost of the item, besides one step.
    pub(super) fn cost(&self) -> usize {
        match &self.allowed {
            Allowed::These(values) => values.ranges().len(),
            _ => 0,
        }
    }
}

/// The unread rest of an item.
pub(super) struct Rest<'a> {
    pub(super) item: &'a Item,
    pub(super) left: u64,
    pub(super) path: &'a str,
}

/// The bytes that a writer's and a reader's item share.
pub(super) struct Overlap {
    pub(super) bytes: u64,
    pub(super) difference: Option<Difference>,
    /// True if only the sizes indicate that both sides mean the same.
    pub(super) by_size: bool,
    /// True if both machines must be configured with the same value.
    pub(super) alike: bool,
    /// The condition under which the reader accepts the values, and the reason why it refuses others.
    pub(super) unless: Option<(Subject, Reason)>,
    /// The numbers that the writer may send; `None` if the writer's bytes are not known to be numbers.
    sent: Option<Rc<Values>>,
}

impl Overlap {
    /// The numbers of `width` bytes that may arrive.
    pub(super) fn sent(&self, width: u64, signed: bool) -> Values {
        match &self.sent {
            Some(values) => values.taken_for(width, signed),
            None => Values::all(width, signed),
        }
    }
}

impl Rest<'_> {
    /// True if the rest is one whole integer.
    pub(super) fn is_one_integer(&self) -> bool {
        self.item.is_one_integer() && self.left == self.item.bytes
    }

    /// Width and signedness of the item's integers.
    pub(super) fn integer(&self) -> Option<(u64, bool)> {
        Some((self.item.meaning.width()?, self.item.meaning.is_signed()))
    }

    /// Checks whether `self`, as written, can be read as `read`.
    pub(super) fn read_as(&self, read: &Self) -> Result<Overlap, Reason> {
        use Meaning::{Bool, Signed, Unsigned, Unused};
        let (from, to) = (self.item.meaning, read.item.meaning);
        let (width, read_width) = (from.width(), to.width());
        if let (Some(width), Some(read_width)) = (width, read_width) {
            let cut = !self.left.is_multiple_of(width) || !read.left.is_multiple_of(read_width);
            if width != read_width || cut {
                return Err(Reason::OtherItem { written: self.to_string(), read: read.to_string() });
            }
        }
        let bytes = self.left.min(read.left);
        let difference = match (from, to) {
            (Unused, Unused) => None,
            (Unused, _) => Some(Difference::ReadsZero),
            (_, Unused) => Some(Difference::Dropped),
            _ if from == to || from.is_opaque() || to.is_opaque() => None,
            _ if width.is_some() != read_width.is_some() => Some(Difference::Raw),
            (Bool | Unsigned(_) | Signed(_), Bool | Unsigned(_) | Signed(_)) => Some(Difference::Sign),
            _ => Some(Difference::Meaning),
        };
        let by_size = (from.is_opaque() || to.is_opaque()) && from != Unused && to != Unused;
        let whole = |width: u64| read.left.is_multiple_of(width) && bytes.is_multiple_of(width);
        let zeros = from == Unused && read_width.is_some_and(whole);
        let sent = match self.item.values() {
            _ if zeros => Some(Values::single(0).into()),
            values => values.filter(|_| !from.is_opaque()),
        };
        let alike = !matches!(self.item.allowed, Allowed::Any | Allowed::These(_))
            && !matches!(read.item.allowed, Allowed::Any | Allowed::These(_));
        Ok(Overlap { bytes, difference, by_size, alike, unless: self.unless(read, sent.as_ref())?, sent })
    }

    /// For a map's key, the reader's numbers that keep their order; `None` if all do.
    fn in_order(&self, read: &Self) -> Result<Option<Values>, Reason> {
        let order = |meaning: Meaning| match meaning {
            // The order of these is the order of their bytes.
            Meaning::Bool | Meaning::Unsigned(_) | Meaning::Bits | Meaning::Opaque(_) | Meaning::Raw => Meaning::Raw,
            other => other,
        };
        let (from, to) = (order(self.item.meaning), order(read.item.meaning));
        let is_same = match (from, to) {
            _ if !self.item.in_key || !read.item.in_key => true,
            (Meaning::Unused, _) => true,
            // Keys that differ only in skipped bytes become equal.
            _ => from == to,
        };
        match read.item.meaning.width() {
            _ if is_same => Ok(None),
            Some(width) if self.item.meaning.width().is_some() => {
                let positive = Values::not_negative(width, true).taken_for(width, read.item.meaning.is_signed());
                Ok(Some(positive))
            }
            _ => Err(Reason::OtherOrder),
        }
    }

    /// The condition under which the reader accepts the values.
    fn unless(&self, read: &Self, sent: Option<&Rc<Values>>) -> Result<Option<(Subject, Reason)>, Reason> {
        let is_integer = self.item.meaning.width().is_some() && !self.item.meaning.is_opaque();
        // If the writer's bytes are not an integer, the condition names the reader's field, with its origin.
        let field = match is_integer {
            true => self.path.to_owned(),
            false => format!("{} (from {})", read.path, self.path),
        };
        let order = self.in_order(read)?;
        let Some(width) = read.item.meaning.width() else { return Ok(None) };
        let signed = read.item.meaning.is_signed();
        let limit = match (&self.item.allowed, &read.item.allowed) {
            (_, Allowed::Any) | (Allowed::Equal, Allowed::Equal) => None,
            (Allowed::AtMost, Allowed::AtMost) => Some(Rc::new(Values::not_negative(width, signed))),
            (Allowed::Equal, Allowed::AtMost) if !signed => None,
            (_, Allowed::Equal) => {
                let reason = Reason::NotConfigured { taken: "the value that its machine has".into() };
                return Ok(Some((Subject::Configuration(field), reason)));
            }
            (_, Allowed::AtMost) => {
                let reason = Reason::NotConfigured { taken: "0 up to the value that its machine has".into() };
                return Ok(Some((Subject::Configuration(field), reason)));
            }
            (_, Allowed::These(taken)) => Some(Rc::clone(taken)),
        };
        let taken = match (&limit, order) {
            (None, None) => return Ok(None),
            (Some(limit), None) => Rc::clone(limit),
            (None, Some(order)) => Rc::new(order),
            (Some(limit), Some(order)) => Rc::new(limit.and(&order)),
        };
        let written = sent.map_or_else(|| Values::all(width, signed), |values| values.taken_for(width, signed));
        let refused = written.without(&taken);
        if refused.is_empty() {
            return Ok(None);
        }
        let reason = match limit.filter(|limit| !written.without(limit).is_empty()) {
            Some(limit) => Reason::NotTaken { taken: limit.to_string() },
            None => Reason::OtherOrder,
        };
        let accepted = written.and(&taken);
        if accepted.is_empty() {
            return Err(reason);
        }
        // The condition uses the numbers of the side whose field it names.
        let signed = if is_integer { self.item.meaning.is_signed() } else { signed };
        let (taken, refused) = (accepted.taken_for(width, signed), refused.taken_for(width, signed));
        Ok(Some((Subject::Value { field, taken, refused }, reason)))
    }
}

impl fmt::Display for Rest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path, self.item.meaning)
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("bool"),
            Self::Unsigned(bytes) => write!(f, "u{}", bytes * 8),
            Self::Signed(bytes) => write!(f, "i{}", bytes * 8),
            Self::Timer => f.write_str("timer"),
            Self::Double => f.write_str("double"),
            Self::Bits => f.write_str("bitmap"),
            Self::Opaque(1) => f.write_str("1 byte"),
            Self::Opaque(bytes) => write!(f, "{bytes} bytes"),
            Self::Raw => f.write_str("raw bytes"),
            Self::Unused => f.write_str("padding"),
        }
    }
}
