//! The description that an older release has, which a save for that release uses.

use std::collections::BTreeMap;

use super::{Description, Field, Kind, MaybeStatic};

/// Newest and oldest version of each subsection that a release supports, by name.
pub(crate) type Subsections = BTreeMap<String, (u32, u32)>;

impl Description {
    /// All subsections that a load of this section may encounter, including those of nested structs.
    pub(crate) fn all_subsections(&self) -> Subsections {
        let mut all = Subsections::new();
        self.note_subsections(&mut all);
        all
    }

    fn note_subsections(&self, into: &mut Subsections) {
        for subsection in self.subsections.iter() {
            into.entry(subsection.name.to_string()).or_insert((subsection.version, subsection.minimum_version));
            subsection.note_subsections(into);
        }
        self.fields.iter().for_each(|field| field.kind.note_subsections(into));
    }

    /// The description of a save at `version`, with the subsection versions of `known`. An unknown subsection is kept unchanged
    /// with `keep_unknown`, and dropped without.
    pub(crate) fn older(&self, version: u32, known: &Subsections, keep_unknown: bool) -> Self {
        let subsection = |subsection: &Self| match known.get(&*subsection.name) {
            Some((newest, _)) => Some(subsection.older(subsection.version.min(*newest), known, keep_unknown)),
            None => keep_unknown.then(|| subsection.older(subsection.version, known, keep_unknown)),
        };
        let subsections: Vec<Self> = self.subsections.iter().filter_map(subsection).collect();
        let field = |field: &Field| Field { kind: field.kind.older(known, keep_unknown), ..field.clone() };
        let fields: Vec<Field> = self.fields.iter().map(field).collect();
        Self::new(self.name.clone(), version, self.minimum_version, fields.into(), subsections.into())
    }
}

impl Kind {
    fn note_subsections(&self, into: &mut Subsections) {
        match self {
            Self::Struct(nested) | Self::StructAt(nested, _) | Self::Temporary(nested) => nested.note_subsections(into),
            Self::Array(inner, _) | Self::CountedArray(inner) | Self::Nullable(inner) | Self::List(inner) => {
                inner.note_subsections(into);
            }
            Self::Map(_, value) => value.note_subsections(into),
            _ => {}
        }
    }

    fn older(&self, known: &Subsections, keep_unknown: bool) -> Self {
        let nested = |of: &Description| MaybeStatic::from(of.older(of.version, known, keep_unknown));
        let inner = |of: &Self| MaybeStatic::from(of.older(known, keep_unknown));
        match self {
            Self::Struct(of) => Self::Struct(nested(of)),
            Self::StructAt(of, version) => Self::StructAt(nested(of), *version),
            Self::Temporary(of) => Self::Temporary(nested(of)),
            Self::Array(of, count) => Self::Array(inner(of), *count),
            Self::CountedArray(of) => Self::CountedArray(inner(of)),
            Self::Nullable(of) => Self::Nullable(inner(of)),
            Self::List(of) => Self::List(inner(of)),
            Self::Map(key, value) => Self::Map(key.clone(), inner(value)),
            other => other.clone(),
        }
    }
}
