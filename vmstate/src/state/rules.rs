//! The part of a description that concerns its section as a whole.

/// How a section of a type is sent and loaded (QEMU's `VMStateDescription`, include/migration/vmstate.h). The rules of a nested
/// struct are ignored: it is part of its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionRules {
    /// Sections of a higher priority are sent, and so loaded, before all of a lower one; 0 is the lowest.
    pub priority: u32,
    /// The instance id among sections of the same name; the next free one if not given.
    pub instance_id: Option<u32>,
    /// A second instance id under which a load finds the section.
    pub alias_id: Option<u32>,
    /// The section is sent before the guest's memory, while the guest still runs.
    pub early_setup: bool,
    /// The section is not always needed, so a stream without it is complete.
    pub conditional: bool,
    /// Why a machine with this section cannot be migrated.
    pub unmigratable: Option<&'static str>,
}

impl SectionRules {
    /// The rules of a section that sets none.
    pub const DEFAULT: Self = Self {
        priority: 0,
        instance_id: None,
        alias_id: None,
        early_setup: false,
        conditional: false,
        unmigratable: None,
    };
}

impl Default for SectionRules {
    fn default() -> Self {
        Self::DEFAULT
    }
}
