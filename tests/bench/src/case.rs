//! What is measured: which data, over which transport, sent by whom, how and over how many channels; and the words that choose among
//! these.

use std::fmt;

use clap::ValueEnum;

/// What is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Nothing that can be compressed.
    Random,
    /// Zeros that were written.
    Zero,
    /// Zeros that nobody has written: the host has given no memory for them.
    Untouched,
    /// Zeros, random bytes, text and tables of records, a quarter each.
    Mixed,
    /// Random pages that the destination has, and of which one byte in a hundred was changed since.
    Changed,
}

impl Data {
    pub(crate) const ALL: [Self; 5] = [Self::Random, Self::Zero, Self::Untouched, Self::Mixed, Self::Changed];

    /// Of how much memory, if `mib` are wanted. QEMU's cache takes its time to fill.
    pub(crate) fn mib(self, mib: u64) -> u64 {
        if self == Self::Changed { mib.min(128) } else { mib }
    }

    fn word(self) -> Word {
        match self {
            Self::Random => Word::Random,
            Self::Zero => Word::Zero,
            Self::Untouched => Word::Untouched,
            Self::Mixed => Word::Mixed,
            Self::Changed => Word::Changed,
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Zero => "zero",
            Self::Untouched => "untouched",
            Self::Mixed => "mixed",
            Self::Changed => "changed",
        })
    }
}

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Unix,
    Tcp,
    /// TLS over TCP.
    Tls,
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Unix, Self::Tcp, Self::Tls];

    pub(crate) fn word(self) -> Word {
        match self {
            Self::Unix => Word::Unix,
            Self::Tcp => Word::Tcp,
            Self::Tls => Word::Tls,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        })
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Nobody: a thing that no migration can do faster.
    Limit(Limit),
    Minivmm,
    Qemu,
}

/// What the machine can do at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The same bytes through so many sockets of the same kind, without any protocol.
    Sockets(u8),
    /// The same bytes from one place in memory to another, by one thread.
    Copy,
    /// Each page of the source is looked at for zeros, by one thread.
    Scan,
    /// Each page of both ends is, by a thread at each.
    ScanBoth,
    /// The host is asked which pages of the source were touched.
    Ask,
}

/// How pages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    /// By zstd of level 1, on page channels.
    Zstd,
    /// What changed of them.
    Xbzrle,
}

/// One way to move the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) sender: Sender,
    /// One, not compressed: the main channel has the pages. Else so many page channels have them.
    pub(crate) channels: u8,
    pub(crate) encoding: Encoding,
}

impl Variant {
    /// All that `filter` wants of this data and transport. What the machine can do at all comes first, QEMU after minivmm.
    pub(crate) fn all(data: Data, transport: Transport, filter: &Filter) -> Vec<Self> {
        let limits: &[Limit] = match data {
            _ if transport == Transport::Tls => &[],
            Data::Random => &[Limit::Copy, Limit::Sockets(1), Limit::Sockets(2)],
            Data::Zero => &[Limit::Scan, Limit::ScanBoth],
            Data::Untouched => &[Limit::Ask],
            Data::Mixed => &[Limit::Sockets(1), Limit::Sockets(2)],
            Data::Changed => &[],
        };
        let ways: &[(u8, Encoding)] = match (data, transport) {
            // Whoever encrypts looks at no byte: any data do.
            (Data::Zero | Data::Untouched | Data::Mixed | Data::Changed, Transport::Tls) => &[],
            (Data::Random | Data::Zero | Data::Untouched, _) => {
                &[(1, Encoding::Plain), (2, Encoding::Plain), (4, Encoding::Plain)]
            }
            // The processors bound what is compressed, not the transport.
            (Data::Mixed, Transport::Unix) => &[
                (1, Encoding::Plain),
                (2, Encoding::Plain),
                (1, Encoding::Zstd),
                (2, Encoding::Zstd),
                (4, Encoding::Zstd),
            ],
            (Data::Mixed, Transport::Tcp) => &[(1, Encoding::Plain), (2, Encoding::Plain)],
            (Data::Changed, _) => &[(1, Encoding::Plain), (1, Encoding::Xbzrle)],
        };
        let limits =
            limits.iter().map(|&limit| Self { sender: Sender::Limit(limit), channels: 1, encoding: Encoding::Plain });
        let moves = ways.iter().flat_map(|&(channels, encoding)| {
            [Sender::Minivmm, Sender::Qemu].map(|sender| Self { sender, channels, encoding })
        });
        let wanted = |variant: &Self| filter.wants([data.word(), transport.word()].into_iter().chain(variant.words()));
        limits.chain(moves).filter(wanted).collect()
    }

    fn words(self) -> Vec<Word> {
        let sender = match self.sender {
            // Beside any channels and any encoding.
            Sender::Limit(_) => return vec![Word::Limit],
            Sender::Minivmm => Word::Minivmm,
            Sender::Qemu => Word::Qemu,
        };
        let channels = match self.channels {
            1 => Word::One,
            2 => Word::Two,
            _ => Word::Four,
        };
        let encoding = match self.encoding {
            Encoding::Plain => Word::Plain,
            Encoding::Zstd => Word::Zstd,
            Encoding::Xbzrle => Word::Xbzrle,
        };
        vec![sender, channels, encoding]
    }

    /// Page channels beside the main one.
    pub(crate) fn page_channels(self) -> Option<u8> {
        (self.channels > 1 || self.encoding == Encoding::Zstd).then_some(self.channels)
    }

    /// QEMU's doing of the same.
    pub(crate) fn peer(self) -> Option<Self> {
        (self.sender == Sender::Minivmm).then_some(Self { sender: Sender::Qemu, ..self })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sender = match self.sender {
            Sender::Minivmm => "minivmm",
            Sender::Qemu => "QEMU",
            Sender::Limit(limit) => {
                return f.write_str(match limit {
                    Limit::Sockets(1) => "the socket alone",
                    Limit::Sockets(_) => "two sockets alone",
                    Limit::Copy => "memcpy",
                    Limit::Scan => "looking for zeros, source",
                    Limit::ScanBoth => "looking for zeros, both ends",
                    Limit::Ask => "asking what was touched",
                });
            }
        };
        let channels = if self.channels == 1 { "channel" } else { "channels" };
        write!(f, "{sender}, {} {channels}", self.channels)?;
        f.write_str(match self.encoding {
            Encoding::Plain => "",
            Encoding::Zstd => ", zstd",
            Encoding::Xbzrle => ", XBZRLE",
        })
    }
}

/// A word of `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Word {
    Random,
    Zero,
    Untouched,
    Mixed,
    Changed,
    Unix,
    Tcp,
    Tls,
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
    #[value(name = "4")]
    Four,
    Plain,
    Zstd,
    Xbzrle,
    Minivmm,
    Qemu,
    Limit,
}

impl Word {
    /// Words of the same kind are alternatives.
    fn kind(self) -> u8 {
        match self {
            Self::Random | Self::Zero | Self::Untouched | Self::Mixed | Self::Changed => 0,
            Self::Unix | Self::Tcp | Self::Tls => 1,
            Self::One | Self::Two | Self::Four => 2,
            Self::Plain | Self::Zstd | Self::Xbzrle => 3,
            Self::Minivmm | Self::Qemu | Self::Limit => 4,
        }
    }
}

/// Of each kind of word one of these, or any if there is none of that kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter(pub(crate) Vec<Word>);

impl Filter {
    pub(crate) fn wants(&self, words: impl IntoIterator<Item = Word>) -> bool {
        let mut words = words.into_iter();
        words.all(|word| self.0.contains(&word) || self.0.iter().all(|other| other.kind() != word.kind()))
    }
}
