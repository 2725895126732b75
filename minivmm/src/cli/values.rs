//! Parsers of the values of flags: from text to plain data, or to a sentence for the user.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::limits::{self, LimitOptions};
use crate::config::{self, Address, Cpu, Disk, ListenAt, Net, Network, NoSize, RateLimits, Restore, Serial};
use crate::control::{Channel, channel};
use crate::cpu::Choice;
use crate::devices::virtio::blk::SECTOR;
use crate::passed;

/// Parses bytes: a number with an optional `K`, `M`, `G` or `T` (powers of 1024), or any other form that [`config::size`]
/// reads.
pub(super) fn size(text: &str) -> Result<u64, String> {
    config::size(text, 1).map_err(|wrong| match wrong {
        NoSize::Malformed => "write a number of bytes, or one with K, M, G or T, as 256M".into(),
        NoSize::TooLarge => "that is more than 64 bits can count".into(),
    })
}

/// Formats a size for [`size`], with the largest unit that leaves no fraction.
pub(super) fn size_shown(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        _ if bytes == 0 => "0".into(),
        30.. => format!("{}G", bytes >> 30),
        20.. => format!("{}M", bytes >> 20),
        10.. => format!("{}K", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// Parses a number without a sign, which `u64::from_str` would accept.
pub(super) fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Parses a time: a number with `ms`, `s`, `min` or `h`; without a unit it is in ms, as in QEMU's parameters.
pub(super) fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let milliseconds = match &text[digits.len()..] {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number(digits)?.checked_mul(milliseconds).map(Duration::from_millis)
}

/// Parses bytes a second, as `2G/s` or `1.5G`, in powers of 1024.
pub(super) fn bytes_per_second(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    scaled(number.strip_suffix('B').unwrap_or(number), 1024.0)
        .and_then(integer)
        .ok_or_else(|| "write bytes a second, as 500M/s or 1.5G/s".into())
}

/// Parses a wire's bandwidth as bytes a second: `100G`, `100Gbit/s` and `100Gbps` are bits, as networks have them, in powers of
/// 1000; `12G/s` and `12GB/s` are bytes, in powers of 1024.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    let bits = ["bit/s", "bit", "bps"].into_iter().find_map(|unit| text.strip_suffix(unit));
    let bytes = if text.ends_with("/s") || text.ends_with('B') { bytes_per_second(text).ok() } else { None };
    let wire = match bits {
        None if bytes.is_some() => bytes,
        _ => scaled(bits.unwrap_or(text), 1000.0).and_then(|bits| integer(bits / 8.0)),
    };
    wire.filter(|&wire| wire > 0)
        .ok_or_else(|| "write bits a second, as 100G or 100Gbit/s, or bytes, as 12G/s; more than 0".into())
}

/// Parses a time, with a fraction and down to microseconds: `0.2ms`, `50us`, `1s`; without a unit it is in ms.
pub(super) fn short_time(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("", 1e-3)];
    let of = |(unit, seconds): (&str, f64)| Some((text.strip_suffix(unit)?, seconds));
    let time = units.into_iter().find_map(of).and_then(|(number, seconds)| Some(fraction(number)? * seconds));
    time.and_then(|time| Duration::try_from_secs_f64(time).ok())
        .ok_or_else(|| "write a time, as 0.2ms, 50us or 1s".into())
}

/// Parses a percentage to a share of 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let percent = fraction(text.strip_suffix('%').unwrap_or(text));
    percent
        .filter(|percent| (0.0..100.0).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| "write a percentage from 0 to below 100, as 0.01%".into())
}

/// Parses a number with an optional `K`, `M`, `G` or `T`: powers of `step`.
fn scaled(text: &str, step: f64) -> Option<f64> {
    let power = text.chars().last().and_then(|last| "kmgt".find(last.to_ascii_lowercase()));
    let number = if power.is_some() { text.get(..text.len() - 1)? } else { text };
    let power = power.map_or(0, |power| power + 1);
    Some(fraction(number)? * step.powi(i32::try_from(power).ok()?))
}

/// Parses digits with at most one point; no sign, no exponent.
fn fraction(text: &str) -> Option<f64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    digits.then(|| text.parse().ok())?
}

/// Converts a number that fits into 64 bits.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked before")]
fn integer(number: f64) -> Option<u64> {
    (0.0..=u64::MAX as f64 / 2.0).contains(&number).then(|| number.round() as u64)
}

/// Parses the size of guest RAM: whole pages, from the megabyte that the boot protocol needs to the 64 GiB that the machine can
/// map.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if !(1 << 20..=64 << 30).contains(&bytes) {
        return Err("guest RAM is 1M to 64G".into());
    }
    if bytes % 4096 != 0 {
        return Err("guest RAM is whole pages; give a multiple of 4K".into());
    }
    Ok(bytes)
}

/// Parses a number of vCPUs.
pub(super) fn cpus(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(count @ 1..=8) => Ok(count),
        _ => Err("the machine has 1 to 8 vCPUs".into()),
    }
}

/// `MODEL[,+FEATURE][,-FEATURE]…`
pub(super) fn cpu(text: &str) -> Result<Cpu, String> {
    let cpu: Cpu = text.parse()?;
    Choice::new(&cpu).map(|_| cpu)
}

/// `FILE[,readonly|,create=SIZE][,LIMIT…]`
pub(super) fn disk(text: &str) -> Result<Disk, String> {
    let mut parts = comma_separated(text).into_iter();
    let path = parts.next().filter(|path| !path.is_empty()).ok_or("write FILE or FILE,readonly")?;
    let (mut read_only, mut create) = (false, None);
    let mut limits = LimitOptions::default();
    for option in parts {
        match option.as_str() {
            "readonly" => read_only = true,
            made if made.starts_with("create=") => create = Some(disk_size(made.trim_start_matches("create="))?),
            _ if limits.take(&option)? => {}
            _ if option.contains('=') => return Err(format!("'{option}' is unknown; limits are {}", limits::USAGE)),
            _ => return Err(format!("'{option}' is unknown; write FILE or FILE,readonly (a comma in FILE as ,,)")),
        }
    }
    if create.is_some() && read_only {
        return Err("the content of a disk with create= is written: leave out readonly".into());
    }
    let path = if create.is_some() { no_descriptor(path.into()) } else { path.into() };
    Ok(Disk { path, read_only, create, limits: limits.finish()? })
}

fn disk_size(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    match bytes > 0 && bytes.is_multiple_of(SECTOR) {
        true => Ok(bytes),
        false => Err(format!("create={text}: a disk has sectors of {SECTOR} bytes, one at least")),
    }
}

/// `tap=NAME` or `stream=PATH`, and `[,mac=XX:XX:XX:XX:XX:XX][,uso=off][,vhost=on][,LIMIT…]`
pub(super) fn net(text: &str) -> Result<Net, String> {
    let usage = "write tap=NAME or stream=PATH, and ,mac=52:54:00:12:34:56 behind it if you like";
    let (mut network, mut mac, mut uso, mut vhost) = (None, None, true, false);
    let mut limits = LimitOptions::default();
    for option in comma_separated(text) {
        match option.split_once('=') {
            Some((kind @ ("tap" | "stream"), name)) => {
                let other = network.replace(if kind == "tap" { tap(name)? } else { stream(name)? });
                if other.is_some() {
                    return Err("a card has one network; give --net once more for another card".into());
                }
            }
            Some(("mac", address)) => mac = Some(mac_address(address)?),
            Some(("uso", value)) => uso = switch(value).map_err(|why| format!("uso: {why}"))?,
            Some(("vhost", value)) => vhost = switch(value).map_err(|why| format!("vhost: {why}"))?,
            _ if limits.take(&option)? => {}
            _ => return Err(format!("'{option}' is unknown; {usage}; limits are {}", limits::USAGE)),
        }
    }
    let (network, limits) = (network.ok_or(usage)?, limits.finish()?);
    if vhost && !matches!(network, Network::Tap(_)) {
        return Err("vhost=on is for a tap: the kernel moves frames between the guest and that; leave it out".into());
    }
    if vhost && limits != RateLimits::default() {
        return Err(
            "minivmm sees no frame that the kernel moves, and cannot limit their rate: leave out vhost=on or the \
                    limits, and limit the tap with tc(8)"
                .into(),
        );
    }
    Ok(Net { network, mac, uso, vhost, limits })
}

/// Parses the name of a tap: a passed one, or a name by Linux's rule for interfaces: below `IFNAMSIZ` (16) with the NUL, no
/// slash, no colon, no white space
/// (`dev_valid_name`, net/core/dev.c).
fn tap(name: &str) -> Result<Network, String> {
    if passed::reference(Path::new(name)).is_some() {
        return Ok(Network::Tap(name.into()));
    }
    let fits = (1..16).contains(&name.len()) && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    let wrong = || format!("'{name}' is no interface name; use 1 to 15 letters or digits");
    if fits { Ok(Network::Tap(name.into())) } else { Err(wrong()) }
}

fn stream(path: &str) -> Result<Network, String> {
    if path.is_empty() { Err("write stream=PATH".into()) } else { Ok(Network::Stream(path.into())) }
}

fn mac_address(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten()).collect();
    let address: [u8; 6] = bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("'{text}' is no MAC address; write six bytes, as 52:54:00:12:34:56"))?;
    // IEEE 802: bit 0 of the first byte marks a group, which no interface can have as its own.
    if address[0] & 1 != 0 {
        return Err(format!(
            "'{text}' is a multicast address; choose one with an even first byte, as 52:54:00:12:34:56"
        ));
    }
    Ok(address)
}

/// Least size of a console's file: a smaller one would hold only a line or two.
const SERIAL_MAX_MIN: u64 = 4096;

/// `stdio`, `file:PATH[,max=SIZE]`, `pty` or `none`
pub(super) fn serial(text: &str) -> Result<Serial, String> {
    match text.split_once(':') {
        None if text == "stdio" => Ok(Serial::Stdio),
        None if text == "pty" => Ok(Serial::Pty),
        None if text == "none" => Ok(Serial::None),
        Some(("fd", _)) => Ok(Serial::File { path: text.into(), max: None }),
        Some(("file", file)) if !file.is_empty() => serial_file(file),
        _ => Err("write stdio, file:PATH, fd:N, pty or none".into()),
    }
}

fn serial_file(text: &str) -> Result<Serial, String> {
    let usage = "write file:PATH or file:PATH,max=SIZE (a comma in PATH as ,,)";
    let mut parts = comma_separated(text).into_iter();
    let path = parts.next().filter(|path| !path.is_empty()).ok_or(usage)?;
    let mut max = None;
    for option in parts {
        match option.split_once('=') {
            Some(("max", bytes)) => max = Some(size(bytes)?),
            _ => return Err(format!("'{option}' is unknown; {usage}")),
        }
    }
    if max.is_some_and(|max| max < SERIAL_MAX_MIN) {
        return Err(format!("max is {SERIAL_MAX_MIN} bytes or more"));
    }
    Ok(Serial::File { path: no_descriptor(path.into()), max })
}

/// `on` or `off`
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

/// `eager` or `lazy`
pub(super) fn restore(text: &str) -> Result<Restore, String> {
    match text {
        "eager" => Ok(Restore::Eager),
        "lazy" => Ok(Restore::Lazy),
        _ => Err("write eager or lazy".into()),
    }
}

/// Parses `unix:PATH`, for sockets that are never reached over a network.
pub(super) fn control(text: &str) -> Result<PathBuf, String> {
    match text.parse() {
        Ok(Address::Unix(path)) => Ok(path),
        _ => Err("write unix:PATH".into()),
    }
}

/// Parses `unix:PATH` or `fd:N`, the control socket of a machine.
pub(super) fn control_here(text: &str) -> Result<PathBuf, String> {
    let path = descriptor(text).or_else(|_| control(text).map(no_descriptor));
    path.map_err(|_| "write unix:PATH or fd:N".into())
}

/// One value of `--incoming`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IncomingValue {
    /// Where the migration comes from.
    Main(ListenAt),
    /// Where its descriptors come from: path of a unix socket.
    Cpr(PathBuf),
}

/// Parses where a migration comes from: `unix:PATH`, `tcp:HOST:PORT` or `fd:N`; `file:PATH`; `defer`; or a channel in JSON, as
/// QEMU takes it.
pub(super) fn incoming(text: &str) -> Result<IncomingValue, String> {
    let main = match text.starts_with('{') {
        true => match channel(text)? {
            Channel::Cpr(path) => return Ok(IncomingValue::Cpr(path)),
            Channel::Main(uri) => uri,
        },
        false if text == "defer" => return Ok(IncomingValue::Main(ListenAt::Deferred)),
        false => text.to_owned(),
    };
    let at = match descriptor(&main) {
        Ok(path) => ListenAt::Passed(path),
        Err(_) => ListenAt::Address(main.parse()?),
    };
    Ok(IncomingValue::Main(at))
}

/// Combines all values of `--incoming`.
pub(super) fn incoming_of(values: &[IncomingValue]) -> Result<Option<ListenAt>, String> {
    let (mut mains, mut cprs) = (Vec::new(), Vec::new());
    for value in values {
        match value {
            IncomingValue::Main(at) => mains.push(at),
            IncomingValue::Cpr(path) => cprs.push(path),
        }
    }
    match (&mains[..], &cprs[..]) {
        ([], []) => Ok(None),
        ([at], []) => Ok(Some((*at).clone())),
        ([ListenAt::Address(main @ (Address::Unix(_) | Address::Tcp(_)))], [cpr]) => {
            Ok(Some(ListenAt::Transfer { main: main.clone(), cpr: (*cpr).clone() }))
        }
        ([_], [_]) => Err("with a cpr channel the main channel has to be unix:PATH or tcp:HOST:PORT".into()),
        ([], [_]) => Err("a cpr channel alone brings no guest: give --incoming with the main channel as well".into()),
        _ => Err("give one address, or one main channel and one cpr channel".into()),
    }
}

/// Parses `fd:N` or `fd:NAME`, and nothing else.
pub(super) fn descriptor(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if passed::reference(&path).is_some() { Ok(path) } else { Err("write fd:N or fd:NAME".into()) }
}

/// Prefixes `./` to a path that looks like a descriptor but is a path.
fn no_descriptor(path: PathBuf) -> PathBuf {
    if passed::reference(&path).is_some() { Path::new(".").join(path) } else { path }
}

/// Splits at single commas; a doubled comma stands for one within a part, as in QEMU's options.
pub(super) fn comma_separated(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}
