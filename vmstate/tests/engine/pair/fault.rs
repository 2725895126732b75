//! Faults of the virtual wire, and their effects on each side.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    pub fn other(self) -> Self {
        if self == Self::Source { Self::Destination } else { Self::Source }
    }
}

/// A fault that occurs once `sender` has put `after` bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub sender: Side,
    pub after: usize,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Both directions break at once; data under way in the other direction is lost.
    Reset,
    /// This direction closes; the other one continues to work.
    HalfClose,
    /// This direction drops everything from here on, without an error.
    Silent,
    /// The sender's process dies.
    SenderDies,
    /// The receiver's process dies, before it has read any bytes that it was not waiting for.
    ReceiverDies,
    /// This direction continues at this many bytes a second; with 0, the contents of the socket buffer stay there for ever.
    Slows(u32),
}
