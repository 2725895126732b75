//! Commands for the named dirty bitmaps of disks, for incremental backups. The bitmaps have locks of their own, so the driver is
//! not involved.
//!
//! Facts: QEMU's `block/monitor/bitmap-qmp-cmds.c`.

use std::ops::Range;
use std::sync::Arc;

use ring::digest;
use serde_json::{Value, json};

use crate::control::commands::{Arguments, Failure};
use crate::control::descriptors::Caller;
use crate::control::kind::{Kind, Member, Shape, needed, optional};
use crate::control::table::{CarryOut, Command};
use crate::control::transaction::{Step, carry_out};
use crate::devices::virtio::blk::{BitmapError, Bitmaps, DirtyBitmap, GRANULARITY, Transaction};
use crate::vm::DiskFacts;

/// Most ranges in an answer.
const RANGES_MAX: usize = 4096;

impl From<BitmapError> for Failure {
    fn from(error: BitmapError) -> Self {
        Self::generic(error.to_string())
    }
}

/// Changes bitmaps of disks, which the transaction names by their index.
pub(super) type Change = fn(&[DiskFacts], &mut Transaction<'_>, &Arguments) -> Result<(), Failure>;

/// Commands that are also actions of a transaction.
pub(super) const CHANGES: [(&str, Change); 6] = [
    ("block-dirty-bitmap-add", add),
    ("block-dirty-bitmap-remove", remove),
    ("block-dirty-bitmap-clear", clear),
    ("block-dirty-bitmap-enable", enable),
    ("block-dirty-bitmap-disable", disable),
    ("block-dirty-bitmap-merge", merge),
];

/// Carries out one change.
fn alone(caller: &Caller, arguments: Arguments, change: Change) -> Result<Value, Failure> {
    carry_out(caller, [Step::Change(change, arguments)])
}

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    let command = |name, about, carry_out: CarryOut| Command::new(name, about, carry_out).takes(node_and_name());
    vec![
        command(
            "block-dirty-bitmap-add",
            "adds a [dirty bitmap](minivmm-devices.md#dirty-bitmaps) to the disk `node`, as `query-block` names it. `granularity` is the bytes of a \
             cluster, a power of two from 512 to 2 GiB, 64 KiB if it is not given; with `disabled` the bitmap does not record until \
             `block-dirty-bitmap-enable`; `persistent` is refused, because a raw image has no place for bitmaps",
            |caller, arguments| alone(caller, arguments, add),
        )
        .takes(node_and_name().into_iter().chain([
            optional("granularity", Kind::Size),
            optional("persistent", Kind::Switch),
            optional("disabled", Kind::Switch),
        ])),
        command("block-dirty-bitmap-remove", "removes a bitmap", |caller, arguments| {
            alone(caller, arguments, remove)
        }),
        command("block-dirty-bitmap-clear", "makes all clusters of a bitmap clean", |caller, arguments| {
            alone(caller, arguments, clear)
        }),
        command("block-dirty-bitmap-enable", "lets a bitmap record the guest's changes", |caller, arguments| {
            alone(caller, arguments, enable)
        }),
        command("block-dirty-bitmap-disable", "keeps a bitmap as it is, whatever the guest changes", |caller, arguments| {
            alone(caller, arguments, disable)
        }),
        Command::new(
            "block-dirty-bitmap-merge",
            "makes each cluster of the bitmap `target` dirty that is dirty in one of `bitmaps`: names, or objects with `node` and `name`",
            |caller, arguments| alone(caller, arguments, merge),
        )
        .takes([
            needed("node", Kind::Text),
            needed("target", Kind::Text),
            needed("bitmaps", Kind::list(Kind::TextOrObject("BlockDirtyBitmapOrStr", Shape::of(node_and_name())))),
        ]),
        command(
            "block-dirty-bitmap-ranges",
            "the dirty parts of a disk by one of its bitmaps, in bytes, from `start` on or from the first byte: at most 4096 ranges in their order, and \
             `next`, the `start` of the rest, if there are more; QEMU lacks it. [An incremental backup](minivmm-devices.md#an-incremental-backup) copies them",
            ranges,
        )
        .takes(node_and_name().into_iter().chain([optional("start", Kind::Size)]))
        .gives(Kind::object([
            needed("ranges", Kind::list(Kind::object(["start", "length"].map(|name| needed(name, Kind::Integer))))),
            optional("next", Kind::Integer),
        ])),
        command(
            "x-debug-block-dirty-bitmap-sha256",
            "the SHA-256 of a bitmap's bits, to compare bitmaps of the same size and granularity",
            sha256,
        )
        .gives(Kind::object([needed("sha256", Kind::Text)])),
    ]
}

fn node_and_name() -> [Member; 2] {
    ["node", "name"].map(|name| needed(name, Kind::Text))
}

/// Type of a bitmap in `query-block`.
pub(super) fn kind() -> Kind {
    Kind::object([
        needed("name", Kind::Text),
        needed("count", Kind::Integer),
        needed("granularity", Kind::Integer),
        needed("recording", Kind::Switch),
        needed("busy", Kind::Switch),
        needed("persistent", Kind::Switch),
    ])
}

/// Lists the bitmaps of a disk, if it has some.
pub(super) fn list(disk: &DiskFacts) -> Option<Value> {
    let one = |bitmap: &DirtyBitmap| {
        json!({
            "name": bitmap.name(),
            "count": bitmap.dirty_bytes(),
            "granularity": bitmap.granularity(),
            "recording": bitmap.is_recording(),
            "busy": bitmap.is_busy(),
            "persistent": false,
        })
    };
    let all = disk.bitmaps.each(one);
    (!all.is_empty()).then(|| all.into())
}

/// Index of the disk `node`.
pub(super) fn find(disks: &[DiskFacts], node: &str) -> Option<usize> {
    disks.iter().position(|disk| disk.name == node)
}

fn of_node(disks: &[DiskFacts], node: &str) -> Result<usize, Failure> {
    find(disks, node).ok_or_else(|| Failure::generic(format!("Node '{node}' not found")))
}

/// The bitmaps of the disk that the argument `node` names.
fn bitmaps(caller: &Caller, arguments: &Arguments) -> Result<Arc<Bitmaps>, Failure> {
    let mut disks = caller.inventory().disks;
    let index = of_node(&disks, text(arguments, "node"))?;
    Ok(disks.swap_remove(index).bitmaps)
}

pub(super) fn text<'a>(arguments: &'a Arguments, name: &str) -> &'a str {
    arguments.text(name).unwrap_or_default()
}

fn add(disks: &[DiskFacts], transaction: &mut Transaction<'_>, arguments: &Arguments) -> Result<(), Failure> {
    let (node, name) = (text(arguments, "node"), text(arguments, "name"));
    let too_large = || Failure::generic("Parameter 'granularity' expects uint32_t");
    let granularity = arguments.integer("granularity").map(u32::try_from).transpose().map_err(|_| too_large())?;
    if name.is_empty() {
        return Err(BitmapError::NoName.into());
    }
    let unknown = || Failure::generic(format!("Cannot find device='{node}' nor node-name='{node}'"));
    let disk = find(disks, node).ok_or_else(unknown)?;
    if arguments.switch("persistent") == Some(true) {
        let why = format!("Can't store persistent bitmaps to {node}: Operation not supported");
        return Err(Failure::generic(why));
    }
    let recording = arguments.switch("disabled") != Some(true);
    Ok(transaction.add(disk, name, granularity.unwrap_or(GRANULARITY), recording)?)
}

fn remove(disks: &[DiskFacts], transaction: &mut Transaction<'_>, arguments: &Arguments) -> Result<(), Failure> {
    Ok(transaction.remove(of_node(disks, text(arguments, "node"))?, text(arguments, "name"))?)
}

fn clear(disks: &[DiskFacts], transaction: &mut Transaction<'_>, arguments: &Arguments) -> Result<(), Failure> {
    Ok(transaction.clear(of_node(disks, text(arguments, "node"))?, text(arguments, "name"))?)
}

fn enable(disks: &[DiskFacts], transaction: &mut Transaction<'_>, arguments: &Arguments) -> Result<(), Failure> {
    Ok(transaction.set_recording(of_node(disks, text(arguments, "node"))?, text(arguments, "name"), true)?)
}

fn disable(disks: &[DiskFacts], transaction: &mut Transaction<'_>, arguments: &Arguments) -> Result<(), Failure> {
    Ok(transaction.set_recording(of_node(disks, text(arguments, "node"))?, text(arguments, "name"), false)?)
}

fn merge(disks: &[DiskFacts], transaction: &mut Transaction<'_>, arguments: &Arguments) -> Result<(), Failure> {
    let disk = of_node(disks, text(arguments, "node"))?;
    let target = text(arguments, "target");
    transaction.find(disk, target)?;
    let sources = arguments.list("bitmaps").iter().map(|source| {
        let (disk, name) = match source {
            Value::String(name) => (disk, name.as_str()),
            other => (
                of_node(disks, other["node"].as_str().unwrap_or_default())?,
                other["name"].as_str().unwrap_or_default(),
            ),
        };
        transaction.find(disk, name)?;
        Ok((disk, name))
    });
    let sources = sources.collect::<Result<Vec<_>, Failure>>()?;
    Ok(transaction.merge(disk, target, &sources)?)
}

fn ranges(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let bitmaps = bitmaps(caller, &arguments)?;
    let start = arguments.integer("start").unwrap_or(0).max(0).cast_unsigned();
    let (listed, next) = bitmaps.with(text(&arguments, "name"), |bitmap| {
        let mut ranges = bitmap.ranges(start);
        let listed: Vec<_> = ranges.by_ref().take(RANGES_MAX).collect();
        (listed, ranges.next())
    })?;
    let one = |range: &Range<u64>| json!({"start": range.start, "length": range.end - range.start});
    let mut answer = json!({"ranges": listed.iter().map(one).collect::<Value>()});
    if let Some(next) = next {
        answer["next"] = next.start.into();
    }
    Ok(answer)
}

/// As `hbitmap_sha256` (util/hbitmap.c) on x86-64: the words of the bitmap, each with its lowest byte first.
fn sha256(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let bitmaps = bitmaps(caller, &arguments)?;
    let digest = bitmaps.with(text(&arguments, "name"), |bitmap| {
        let mut context = digest::Context::new(&digest::SHA256);
        bitmap.words().iter().for_each(|word| context.update(&word.to_le_bytes()));
        context.finish()
    })?;
    let digits: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(json!({"sha256": digits}))
}
