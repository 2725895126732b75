//! The variants that are measured: data, transport, sender, encoding and number of channels; and the words of `--only`
//! that select among them.

use std::fmt;

use clap::ValueEnum;

/// The content of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Random bytes, which cannot be compressed.
    Random,
    /// Zeros that were written.
    Zero,
    /// Zeros that were never written: the host has allocated no memory for them.
    Untouched,
    /// Zeros, random bytes, text and tables of records, a quarter each.
    Mixed,
    /// Random pages that the destination has already, with one byte in a hundred changed since.
    Changed,
}

impl Data {
    pub(crate) const ALL: [Self; 5] = [Self::Random, Self::Zero, Self::Untouched, Self::Mixed, Self::Changed];

    /// Size of the memory, in MiB, if `mib` is asked for; less where filling QEMU's cache would take too long.
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

/// The transport of the stream.
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

/// The sender of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// No sender: an operation that no migration can be faster than.
    Limit(Limit),
    Minivmm,
    Qemu,
}

/// An operation whose speed limits every migration on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The same bytes through this number of sockets of the same kind, without any protocol.
    Sockets(u8),
    /// The same bytes copied within memory, by one thread.
    Copy,
    /// Each page of the source compared with zeros, by one thread.
    Scan,
    /// Each page of source and destination compared with zeros, by one thread at each.
    ScanBoth,
    /// The host's list of the source's touched pages.
    Ask,
}

/// How pages are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    /// Compressed by zstd of level 1, on page channels.
    Zstd,
    /// As the difference to the page sent before (XBZRLE).
    Xbzrle,
}

/// One way to migrate the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) sender: Sender,
    /// Number of page channels; for one channel without compression the main channel carries the pages.
    pub(crate) channels: u8,
    pub(crate) encoding: Encoding,
}

impl Variant {
    /// All variants for this data and transport that `filter` selects. The machine's limits come first, QEMU after
    /// minivmm.
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
            // Encryption takes the same time for any data.
            (Data::Zero | Data::Untouched | Data::Mixed | Data::Changed, Transport::Tls) => &[],
            (Data::Random | Data::Zero | Data::Untouched, _) => {
                &[(1, Encoding::Plain), (2, Encoding::Plain), (4, Encoding::Plain)]
            }
            // Compression is limited by the processors, not by the transport.
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
            // A limit is measured whatever the channels and the encoding.
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

    /// Number of page channels in addition to the main channel.
    pub(crate) fn page_channels(self) -> Option<u8> {
        (self.channels > 1 || self.encoding == Encoding::Zstd).then_some(self.channels)
    }

    /// The same variant with QEMU as the sender.
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
                    Limit::Scan => "comparing with zeros, source",
                    Limit::ScanBoth => "comparing with zeros, both ends",
                    Limit::Ask => "listing touched pages",
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

/// A word that `--only` accepts.
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
    /// The kind of a word; words of the same kind are alternatives.
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

/// Selects the variants that have, for each kind of word in the list, one of the list's words of that kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter(pub(crate) Vec<Word>);

impl Filter {
    pub(crate) fn wants(&self, words: impl IntoIterator<Item = Word>) -> bool {
        let mut words = words.into_iter();
        words.all(|word| self.0.contains(&word) || self.0.iter().all(|other| other.kind() != word.kind()))
    }
}
