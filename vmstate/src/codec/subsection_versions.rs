//! The versions of subsections in an older release.

use std::collections::BTreeMap;

/// The newest and oldest version of each subsection of one section, in the release for which the section is saved.
#[derive(Clone, Debug)]
pub(crate) struct SubsectionVersions(BTreeMap<String, (u32, u32)>);

impl SubsectionVersions {
    /// Creates the table from a map by name.
    pub(crate) fn new(versions: BTreeMap<String, (u32, u32)>) -> Self {
        Self(versions)
    }

    /// The version at which both releases have the subsection, if there is one.
    pub(crate) fn version(&self, name: &str, newest: u32, oldest: u32) -> Result<u32, String> {
        let Some((newest_there, oldest_there)) = self.0.get(name) else {
            return Err(format!("subsection {name:?} is needed now and not known there"));
        };
        let version = newest.min(*newest_there);
        if version < oldest || version < *oldest_there {
            return Err(format!(
                "subsection {name:?} is needed now: this release writes versions {oldest} to {newest}, there \
                 {oldest_there} to {newest_there} load"
            ));
        }
        Ok(version)
    }
}
