//! Parts of a machine, for queries: facts that change only at a reset.

use std::sync::Arc;

use crate::config::{Config, Rate, RateLimits, Serial};
use crate::devices::virtio::blk::{Bitmaps, node_name};
use crate::kvm::exits::ExitCounters;
use crate::memory::Ram;
use crate::vm::backends::Backends;
use crate::vm::machine::Machine;

/// Parts of a machine and the host's side of them.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Thread id (gettid(2)) of each vCPU's thread on the host, by APIC id.
    pub vcpu_threads: Vec<u32>,
    /// Counters of each vCPU's exits, which continue to change.
    pub vcpu_exits: Vec<ExitCounters>,
    /// Disks, in the order of the command line.
    pub disks: Vec<DiskFacts>,
    /// Character devices: QEMU's label and QEMU's description of the backend.
    pub chardevs: Vec<(&'static str, String)>,
    /// Why it cannot be measured how long vCPUs wait for pages in post-copy, if it cannot.
    pub no_block_time: Option<String>,
}

/// One disk.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// Name in QMP.
    pub name: String,
    /// Path, as on the command line.
    pub path: String,
    /// Whether guest and host may not write.
    pub read_only: bool,
    /// Size in bytes.
    pub bytes: u64,
    /// Limit of bytes a second; 0: none.
    pub bytes_per_second: u64,
    /// Limit of requests a second; 0: none.
    pub operations_per_second: u64,
    /// Named dirty bitmaps, which continue to change.
    pub bitmaps: Arc<Bitmaps>,
}

impl Inventory {
    /// Lists the devices of `machine`, which was made from `config`.
    pub(super) fn new(config: &Config, ram: &Ram, backends: &Backends, machine: &Machine) -> Self {
        let per_second = |rate: Option<Rate>| rate.map_or(0, |rate| rate.per_second.get());
        let disks = config.disks.iter().zip(&backends.images).enumerate().map(|(index, (disk, image))| {
            let RateLimits { bytes, operations } = disk.limits;
            DiskFacts {
                name: node_name(index),
                path: disk.path.display().to_string(),
                read_only: disk.read_only,
                bytes: image.sectors() * 512,
                bytes_per_second: per_second(bytes),
                operations_per_second: per_second(operations),
                bitmaps: Arc::clone(image.bitmaps()),
            }
        });
        let serial = match &config.serial {
            Serial::Stdio => "stdio",
            Serial::File { .. } => "file",
            Serial::Pty => "pty",
            Serial::None => "null",
        };
        let control = config.control.as_ref().map(|path| format!("unix:{},server=on", path.display()));
        Self {
            vcpu_threads: machine.vcpus.iter().map(|vcpu| vcpu.thread_id()).collect(),
            vcpu_exits: machine.vcpus.iter().map(|vcpu| vcpu.exits().clone()).collect(),
            disks: disks.collect(),
            chardevs: control
                .map(|path| ("compat_monitor0", path))
                .into_iter()
                .chain([("serial0", serial.into())])
                .collect(),
            no_block_time: ram.check_threads().err().map(|error| error.to_string()),
        }
    }
}
