//! What a description says about its section as a whole.

/// How a section of a type is sent and loaded (QEMU's `VMStateDescription`, include/migration/vmstate.h). A nested struct's
/// rules mean nothing: it is a part of its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionRules {
    /// Sections of a higher priority are sent, and so loaded, before all of a lower one; 0 is the lowest.
    pub priority: u32,
    /// Which of several of its name it is; the next free one if not given.
    pub instance_id: Option<u32>,
    /// A second instance number that it answers to in a load.
    pub alias_id: Option<u32>,
    /// The section is sent before the guest's memory, while the guest still runs.
    pub early_setup: bool,
    /// The section is not always needed, so a stream without it is complete.
    pub conditional: bool,
    /// Why no machine that has it can be migrated.
    pub unmigratable: Option<&'static str>,
}

impl SectionRules {
    /// Those of a section that says nothing.
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
