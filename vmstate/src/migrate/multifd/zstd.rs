//! The zstd stream of one page channel: a single stream, flushed at the end of each packet.

#[cfg(feature = "zstd")]
pub(super) use with::Compressor;
#[cfg(feature = "zstd")]
pub use with::Decompressor;
#[cfg(not(feature = "zstd"))]
pub(super) use without::{Compressor, Decompressor};

#[cfg(feature = "zstd")]
mod with {
    use zstd_safe::zstd_sys::ZSTD_EndDirective;
    use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

    use crate::error::{Error, ErrorKind, Result};
    use crate::ram::multifd::packet::COMPRESSED_MAX;

    /// The largest window of a stream, that of the strongest of QEMU's levels: 32 MiB of memory for each channel.
    const WINDOW_LOG_MAX: u32 = 25;

    /// The strongest of QEMU's levels; stronger ones have larger windows.
    const LEVEL_MAX: u8 = 20;

    /// Compresses pages.
    pub(in super::super) struct Compressor {
        context: CCtx<'static>,
        output: Vec<u8>,
    }

    impl Compressor {
        pub(in super::super) fn new(level: u8) -> Result<Self> {
            let mut context = CCtx::create();
            context
                .set_parameter(CParameter::CompressionLevel(level.min(LEVEL_MAX).into()))
                .map_err(|code| failed("zstd", code))?;
            Ok(Self { context, output: vec![0; COMPRESSED_MAX] })
        }

        /// Compresses the pages into the next part of the stream; empty if there are none.
        pub(in super::super) fn compress<'a>(&mut self, pages: impl Iterator<Item = &'a [u8]>) -> Result<&[u8]> {
            let mut output = OutBuffer::around(self.output.as_mut_slice());
            let mut any = false;
            for page in pages {
                any = true;
                let mut input = InBuffer::around(page);
                while input.pos() < page.len() {
                    let step =
                        self.context.compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_continue);
                    step.map_err(|code| failed("pages cannot be compressed", code))?;
                }
            }
            while any
                && self.context.flush_stream(&mut output).map_err(|code| failed("pages cannot be compressed", code))?
                    > 0
            {}
            let len = output.pos();
            Ok(self.output.get(..len).unwrap_or_default())
        }
    }

    /// Decompresses pages.
    #[expect(missing_debug_implementations, reason = "nothing of it can be shown")]
    pub struct Decompressor {
        context: DCtx<'static>,
        input: Vec<u8>,
    }

    impl Decompressor {
        /// Creates a decompressor for the beginning of a stream.
        ///
        /// # Errors
        /// zstd has no memory.
        pub fn new() -> Result<Self> {
            let mut context = DCtx::create();
            context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|code| failed("zstd", code))?;
            Ok(Self { context, input: vec![0; COMPRESSED_MAX] })
        }

        /// The buffer for the next `len` bytes of the stream.
        pub fn input(&mut self, len: usize) -> &mut [u8] {
            self.input.get_mut(..len).unwrap_or_default()
        }

        /// Fills `pages` from the next `len` bytes of the stream.
        ///
        /// # Errors
        /// `Malformed` if the bytes do not decompress to exactly these pages.
        pub fn decompress(&mut self, len: usize, pages: &mut [u8]) -> Result<()> {
            let malformed = |message: &str| Err(Error::new(ErrorKind::Malformed, message));
            let size = pages.len();
            let mut input = InBuffer::around(self.input.get(..len).unwrap_or_default());
            let mut output = OutBuffer::around(pages);
            while output.pos() < size || input.pos() < len {
                let before = (input.pos(), output.pos());
                let step = self.context.decompress_stream(&mut output, &mut input);
                step.map_err(|code| failed("the zstd stream of a packet", code))?;
                if before == (input.pos(), output.pos()) {
                    let message = if output.pos() < size {
                        "compressed pages end early"
                    } else {
                        "more than the pages is compressed"
                    };
                    return malformed(message);
                }
            }
            Ok(())
        }
    }

    fn failed(what: &str, code: usize) -> Error {
        Error::new(ErrorKind::Malformed, format!("{what}: {}", get_error_name(code)))
    }
}

#[cfg(not(feature = "zstd"))]
mod without {
    use crate::error::{Error, ErrorKind, Result};

    /// A compressor that cannot be created: this build has no zstd.
    pub(in super::super) enum Compressor {}

    impl Compressor {
        pub(in super::super) fn new(_level: u8) -> Result<Self> {
            Err(lacking())
        }

        pub(in super::super) fn compress<'a>(&mut self, _pages: impl Iterator<Item = &'a [u8]>) -> Result<&[u8]> {
            match *self {}
        }
    }

    /// A decompressor that cannot be created: this build has no zstd.
    pub(in super::super) enum Decompressor {}

    impl Decompressor {
        pub(in super::super) fn new() -> Result<Self> {
            Err(lacking())
        }

        pub(in super::super) fn input(&mut self, _len: usize) -> &mut [u8] {
            match *self {}
        }

        pub(in super::super) fn decompress(&mut self, _len: usize, _pages: &mut [u8]) -> Result<()> {
            match *self {}
        }
    }

    fn lacking() -> Error {
        let message = "pages compressed by zstd, for which this program was not built: set multifd-compression to none at the source";
        Error::new(ErrorKind::Incompatible, message)
    }
}
