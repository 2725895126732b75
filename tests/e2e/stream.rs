//! The bytes of a real migration, kept as an artifact.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use vmstate_lab::bench::Guest;
use vmstate_lab::error::{Error, Result};
use vmstate_tests::stream_parser;

use crate::place::{case, keep, scratch};
use crate::world::{ANSWER, MIGRATION, dirtying, ensure, goes_on, power_off, within};

/// Relays a connection between source and destination in both directions, and returns the bytes that the source sent.
pub(crate) fn relay(listen: &Path, connect: &str) -> Result<JoinHandle<std::io::Result<Vec<u8>>>> {
    let listener =
        UnixListener::bind(listen).map_err(|error| Error::failed(format!("{}: {error}", listen.display())))?;
    let connect = connect.trim_start_matches("unix:").to_owned();
    Ok(thread::spawn(move || {
        let mut source = listener.accept()?.0;
        let mut destination = UnixStream::connect(connect)?;
        let (mut back, mut to) = (destination.try_clone()?, source.try_clone()?);
        // The thread ends with the connection, also by an error.
        thread::spawn(move || std::io::copy(&mut back, &mut to));
        let mut kept = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match source.read(&mut buffer)? {
                0 => {
                    destination.shutdown(std::net::Shutdown::Write)?;
                    return Ok(kept);
                }
                size => {
                    kept.extend(&buffer[..size]);
                    destination.write_all(&buffer[..size])?;
                }
            }
        }
    }))
}

/// Reads the stream with a parser that knows the format only from its description, and the devices from the stream's
/// self-description.
fn read_independently(bytes: &[u8]) -> Result<()> {
    let stream = stream_parser::parse(bytes).map_err(|error| Error::failed(format!("the stream: {error}")))?;
    ensure(stream.configuration.machine == "microvm", || format!("machine {}", stream.configuration.machine))?;
    let ram = stream.ram.block("microvm.ram").map(|block| block.length);
    ensure(ram == Some(256 << 20), || format!("microvm.ram has {ram:?} bytes"))?;
    for name in ["timer", "cpu_common", "cpu", "apic", "ioapic", "kvmclock", "i8259", "i8254", "acpi-ged", "serial"] {
        ensure(stream.device(name, 0).is_some(), || format!("no section {name}"))?;
    }
    let disk = "virtio-mmio@00000000feb00e00/virtio-blk";
    ensure(stream.device(disk, 0).is_some(), || format!("no section {disk}"))
}

#[test]
fn is_kept() {
    case("stream::is_kept", |world| {
        let mut bench = world.bench(&Guest { disk: true, ..dirtying(16, 2000) })?;
        let mut source = bench.boot()?;
        let (mut destination, uri) = bench.incoming()?;
        let directory = scratch()?;
        let between = directory.path().join("relay");
        let relay = relay(&between, &uri)?;
        source.start_migration(&format!("unix:{}", between.display()))?;
        let info = source.follow_migration(within(MIGRATION), |_| ())?;
        ensure(info["status"] == "completed", || format!("the migration did not complete: {info}"))?;
        destination.await_status("running", within(ANSWER))?;
        drop(source);
        let lost = |_| Error::failed("the relay ended badly");
        let bytes = relay.join().map_err(lost)?.map_err(|error| Error::failed(format!("relay: {error}")))?;
        keep("migration.stream", &bytes)?;
        read_independently(&bytes)?;
        goes_on(&mut destination)?;
        power_off(destination)
    });
}
