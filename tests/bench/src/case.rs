//! What is measured: which data, over which transport, sent by whom over how many channels; and the words that choose among these.

use std::fmt;

use clap::ValueEnum;

/// What is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Random,
    Zero,
}

impl Data {
    pub(crate) const ALL: [Self; 2] = [Self::Random, Self::Zero];

    fn word(self) -> Word {
        match self {
            Self::Random => Word::Random,
            Self::Zero => Word::Zero,
        }
    }
}

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Unix,
    Tcp,
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Self::Unix, Self::Tcp];

    fn word(self) -> Word {
        match self {
            Self::Unix => Word::Unix,
            Self::Tcp => Word::Tcp,
        }
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The same bytes through the same socket, without any protocol.
    Socket,
    Minivmm,
    Qemu,
}

/// One way to move the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) sender: Sender,
    /// One: the main channel has the pages. More: so many page channels have them.
    pub(crate) channels: u8,
}

impl Variant {
    const CHANNELS: [u8; 3] = [1, 2, 4];

    /// All that `filter` wants of this data and transport. What the machine can do at all comes first, QEMU after minivmm.
    pub(crate) fn all(data: Data, transport: Transport, filter: &Filter) -> Vec<Self> {
        let mut all = vec![Self { sender: Sender::Socket, channels: 1 }];
        for channels in Self::CHANNELS {
            all.extend([Sender::Minivmm, Sender::Qemu].map(|sender| Self { sender, channels }));
        }
        all.retain(|variant| {
            let who = match variant.sender {
                Sender::Socket => vec![Word::Limit],
                Sender::Minivmm => vec![Word::Minivmm, variant.channels_word()],
                Sender::Qemu => vec![Word::Qemu, variant.channels_word()],
            };
            filter.wants([data.word(), transport.word()].into_iter().chain(who))
        });
        all
    }

    fn channels_word(self) -> Word {
        match self.channels {
            1 => Word::One,
            2 => Word::Two,
            _ => Word::Four,
        }
    }

    /// Page channels beside the main one.
    pub(crate) fn page_channels(self) -> Option<u8> {
        (self.channels > 1).then_some(self.channels)
    }

    /// QEMU's doing of the same.
    pub(crate) fn peer(self) -> Option<Self> {
        (self.sender == Sender::Minivmm).then_some(Self { sender: Sender::Qemu, ..self })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.sender {
            Sender::Socket => return f.write_str("the socket alone"),
            Sender::Minivmm => "minivmm",
            Sender::Qemu => "QEMU",
        })?;
        match self.channels {
            1 => f.write_str(", 1 channel"),
            channels => write!(f, ", {channels} channels"),
        }
    }
}

/// A word of `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Word {
    Random,
    Zero,
    Unix,
    Tcp,
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
    #[value(name = "4")]
    Four,
    Minivmm,
    Qemu,
    Limit,
}

impl Word {
    /// Words of the same kind are alternatives.
    fn kind(self) -> u8 {
        match self {
            Self::Random | Self::Zero => 0,
            Self::Unix | Self::Tcp => 1,
            Self::One | Self::Two | Self::Four => 2,
            Self::Minivmm | Self::Qemu | Self::Limit => 3,
        }
    }
}

/// Of each kind of word one of these, or any if there is none of that kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter(pub(crate) Vec<Word>);

impl Filter {
    fn wants(&self, words: impl IntoIterator<Item = Word>) -> bool {
        let mut words = words.into_iter();
        words.all(|word| self.0.contains(&word) || self.0.iter().all(|other| other.kind() != word.kind()))
    }
}
