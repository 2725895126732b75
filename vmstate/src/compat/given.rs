//! Queries on verdicts: whether streams load under assumptions that the user makes and the two descriptions do not show.

use super::verdict::{Break, Comparison, Condition, Direction, Reason, SectionReport, Verdict};

impl SectionReport {
    /// The comparisons in `direction` that can break although all of `assumed` hold. A version that the writer's release only
    /// loads, and the reader's `minimum_version` excludes, is left out: support for it was dropped on purpose. The version that
    /// the writer writes always counts.
    pub fn broken(&self, direction: Direction, assumed: &[String]) -> Vec<&Comparison> {
        let comparisons = || self.comparisons.iter().filter(|comparison| comparison.direction == direction);
        let written = comparisons().map(|comparison| comparison.version).max();
        let dropped = |comparison: &&Comparison| {
            Some(comparison.version) < written
                && matches!(comparison.verdict, Verdict::Breaks(Break { reason: Reason::TooOld { .. }, .. }))
        };
        comparisons().filter(|comparison| !comparison.verdict.loads_given(assumed) && !dropped(comparison)).collect()
    }
}

impl Verdict {
    /// True if the stream loads whenever all of `assumed` hold; each is the text of a [`Condition`].
    ///
    /// ```
    /// use vmstate::compat::check;
    /// use vmstate::schema::{Description, Field, Kind, Presence};
    ///
    /// let fan = |presence| {
    ///     let fields = vec![Field::new("speed".into(), Kind::Unsigned(2), presence)];
    ///     Description::new("fan".into(), 1, 1, fields.into(), vec![].into())
    /// };
    /// let report = check(&fan(Presence::Since(0)), &fan(Presence::If("has_fan".into())));
    /// let verdict = &report.comparisons[0].verdict;
    /// assert!(!verdict.loads_given(&[]));
    /// assert!(verdict.loads_given(&["has_fan is true".into()]));
    /// ```
    pub fn loads_given(&self, assumed: &[String]) -> bool {
        match self {
            Self::Loads => true,
            Self::LoadsIf(cases) => cases
                .iter()
                .all(|case| case.when.iter().any(|condition| assumed.contains(&condition.opposite().to_string()))),
            Self::Breaks(_) | Self::NotCompared(_) => false,
        }
    }

    /// The assumptions under which the stream would load, as texts for [`loads_given`](Self::loads_given); none if the verdict
    /// has no conditions.
    pub fn assumptions(&self) -> impl Iterator<Item = String> {
        let cases = if let Self::LoadsIf(cases) = self { cases.as_slice() } else { &[] };
        cases.iter().flat_map(|case| &case.when).map(|condition| condition.opposite().to_string())
    }
}

impl Condition {
    /// The same condition with the opposite outcome.
    pub fn opposite(&self) -> Self {
        Self { holds: !self.holds, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use crate::compat::{Direction, check};
    use crate::schema::{Description, Field, Kind, Presence};

    /// A field inside of a subsection was removed: the load breaks if both are sent, so the absence of either is enough.
    #[test]
    fn one_condition_of_several_is_enough() {
        let dev = |inner: Vec<Field>| {
            let more = Description::new("dev/more".into(), 1, 1, inner.into(), vec![].into());
            let fields = vec![Field::new("a".into(), Kind::Unsigned(1), Presence::Since(0))];
            Description::new("dev".into(), 1, 1, fields.into(), vec![more].into())
        };
        let gone = Field::new("gone".into(), Kind::Unsigned(4), Presence::If("has_it".into()));
        let report = check(&dev(vec![gone]), &dev(vec![]));
        let broken = |assumed: &[&str]| {
            let assumed: Vec<_> = assumed.iter().map(|text| (*text).to_owned()).collect();
            report.broken(Direction::OldToNew, &assumed).len()
        };
        assert_eq!(broken(&[]), 1, "{report}");
        assert_eq!(broken(&["has_it is true"]), 1);
        assert_eq!(broken(&["has_it is false"]), 0);
        assert_eq!(broken(&["subsection \"dev/more\" is not sent"]), 0);
    }
}
