//! Sets of integers: the values of a field that a writer may send or a reader accepts.

use std::fmt;

use serde::Serialize;

use crate::schema::Limit;

/// The most ranges that a sentence lists.
const MAX_LISTED: usize = 12;

/// A set of integers, as inclusive ranges: sorted, disjoint and not adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Values(Vec<(i128, i128)>);

impl Values {
    /// All values of an integer of `width` bytes.
    pub(super) fn all(width: u64, signed: bool) -> Self {
        let bits = (width * 8).min(64);
        let ends = match signed {
            true => (-(1 << bits >> 1), (1 << bits >> 1) - 1),
            false => (0, (1 << bits) - 1),
        };
        Self(vec![ends])
    }

    /// The values of [`all`](Self::all) that are not negative.
    pub(super) fn not_negative(width: u64, signed: bool) -> Self {
        Self::all(width, signed).and(&Self(vec![(0, i128::MAX)]))
    }

    pub(super) fn single(value: i128) -> Self {
        Self(vec![(value, value)])
    }

    /// The set of these numbers.
    pub(super) fn these(numbers: impl Iterator<Item = i128>) -> Self {
        Self::of(numbers.map(|number| (number, number)).collect())
    }

    /// The part of the set within `limit`; the whole set if the machine's configuration decides.
    pub(super) fn limited(&self, limit: &Limit) -> Self {
        match limit {
            Limit::Equal | Limit::AtMostCurrent => self.clone(),
            Limit::NotZero => self.without(&Self::single(0)),
            Limit::Scalar => self.and(&Self::of(vec![(0, 0xd7ff), (0xe000, 0x0010_ffff)])),
            Limit::Within(first, last) => self.and(&Self::of(vec![(*first, *last)])),
            Limit::OneOf(values) => self.and(&Self::these(values.iter().copied())),
        }
    }

    fn of(mut ranges: Vec<(i128, i128)>) -> Self {
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        let mut joined: Vec<(i128, i128)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// The intersection.
    pub(super) fn and(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some((a, b)), Some((c, d))) = (ours.peek(), theirs.peek()) {
            both.push((*a.max(c), *b.min(d)));
            if b < d {
                ours.next()
            } else {
                theirs.next()
            };
        }
        Self::of(both)
    }

    /// The union.
    pub(super) fn or(&self, other: &Self) -> Self {
        Self::of([self.0.as_slice(), &other.0].concat())
    }

    /// The difference: the values that are not in `other`.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut gaps = Vec::new();
        let mut from = i128::MIN;
        for (first, last) in &other.0 {
            gaps.push((from, first.saturating_sub(1)));
            from = last.saturating_add(1);
        }
        gaps.push((from, i128::MAX));
        self.and(&Self::of(gaps))
    }

    /// These values reinterpreted as signed or unsigned integers of `width` bytes.
    pub(super) fn taken_for(&self, width: u64, signed: bool) -> Self {
        let all = Self::all(width, signed);
        let turn = 1 << (width * 8).min(64);
        let moved = |by: i128| Self::of(self.0.iter().map(|(first, last)| (first + by, last + by)).collect()).and(&all);
        let parts = [moved(-turn), moved(0), moved(turn)];
        parts.iter().fold(Self::default(), |sum, part| sum.or(part))
    }

    /// True if the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if `value` is in the set.
    pub fn contains(&self, value: i128) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < value);
        self.0.get(at).is_some_and(|(first, _)| *first <= value)
    }

    /// The ranges in order, each with its first and last number.
    pub fn ranges(&self) -> &[(i128, i128)] {
        &self.0
    }

    /// Number of terms in a sentence about the set.
    pub(super) fn terms(&self) -> usize {
        self.0.iter().map(|(first, last)| if first == last { 1 } else { 2 }).sum()
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (first, last) in self.0.iter().take(MAX_LISTED) {
            match last - first {
                0 => parts.push(first.to_string()),
                1 => parts.extend([first.to_string(), last.to_string()]),
                _ => parts.push(format!("{first} to {last}")),
            }
        }
        if self.0.len() > MAX_LISTED {
            parts.push("more".into());
        }
        match parts.as_slice() {
            [] => f.write_str("nothing"),
            [one] => f.write_str(one),
            [many @ .., last] => write!(f, "{} or {last}", many.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_as_a_list_of_all_members_says() {
        let members = |values: &Values| (-300..300).filter(|value| values.contains(*value)).collect::<Vec<i128>>();
        let sets = [vec![], vec![(0, 3)], vec![(2, 2), (4, 4), (3, 3)], vec![(-128, -1), (7, 127)], vec![(5, 1)]];
        for (a, b) in sets.iter().flat_map(|a| sets.iter().map(move |b| (a, b))) {
            let holds = |ranges: &[(i128, i128)], value: i128| ranges.iter().any(|(f, l)| (*f..=*l).contains(&value));
            let (x, y) = (Values::of(a.clone()), Values::of(b.clone()));
            let all = || -300..300;
            assert_eq!(members(&x.and(&y)), all().filter(|v| holds(a, *v) && holds(b, *v)).collect::<Vec<_>>());
            assert_eq!(members(&x.without(&y)), all().filter(|v| holds(a, *v) && !holds(b, *v)).collect::<Vec<_>>());
        }
        let bytes = Values::of(vec![(-128, -1), (7, 9)]);
        assert_eq!(bytes.taken_for(1, false).ranges(), [(7, 9), (128, 255)]);
        assert_eq!(bytes.taken_for(1, false).taken_for(1, true), bytes);
        assert_eq!(Values::all(8, false).taken_for(8, true), Values::all(8, true));
    }

    #[test]
    fn sentences() {
        for (ranges, sentence) in [
            (vec![], "nothing"),
            (vec![(3, 3)], "3"),
            (vec![(0, 1)], "0 or 1"),
            (vec![(0, 3)], "0 to 3"),
            (vec![(-1, -1), (1, 2), (5, 9)], "-1, 1, 2 or 5 to 9"),
        ] {
            assert_eq!(Values::of(ranges).to_string(), sentence);
        }
        let odd = (0..20).map(|i| (2 * i + 1, 2 * i + 1)).collect();
        assert_eq!(Values::of(odd).to_string(), "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23 or more");
    }
}
