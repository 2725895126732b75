//! What a fault does to the virtual wire, and to whom.

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

/// What happens once `sender` has put `after` bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub sender: Side,
    pub after: usize,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Both directions break at once; what is under way the other way is lost.
    Reset,
    /// This direction closes; the other works on.
    HalfClose,
    /// This direction swallows everything from here on, and nobody is told.
    Silent,
    /// The sender's process dies.
    SenderDies,
    /// The receiver's process dies, before it has looked at any of the bytes that it was not waiting for.
    ReceiverDies,
    /// This direction goes on at so many bytes a second; 0: what is in the socket buffer stays there for ever.
    Slows(u32),
}
