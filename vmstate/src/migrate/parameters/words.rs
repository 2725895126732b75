//! Parameters whose value is one of several words.

/// When a migration switches over, of the moments at which the pause fits into the downtime limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    /// At the first such moment, as QEMU does.
    #[default]
    Soonest,
    /// At the moment from which on another round would cost the guest more than it takes off the pause.
    LeastDisturbance,
}

impl Aim {
    pub(super) const ALL: [Self; 2] = [Self::Soonest, Self::LeastDisturbance];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Soonest => "soonest",
            Self::LeastDisturbance => "least-disturbance",
        }
    }
}

/// What happens when the deadline passes before the guest was paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeadlineAction {
    /// The migration gives up, and the guest continues to run at the source.
    #[default]
    Cancel,
    /// The guest is paused at once, however long the pause takes. The pause budget becomes four expected pauses, unless it was
    /// set.
    SwitchOver,
    /// The vCPUs are throttled by `max-cpu-throttle`, whether `auto-converge` is on or not, until the pause fits into the
    /// downtime limit. The migration gives up if that does not help either.
    Throttle,
}

impl DeadlineAction {
    pub(super) const ALL: [Self; 3] = [Self::Cancel, Self::SwitchOver, Self::Throttle];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::SwitchOver => "switch-over",
            Self::Throttle => "throttle",
        }
    }
}
