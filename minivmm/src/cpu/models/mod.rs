//! The models that `--cpu` knows by name; a file each. What each says was read from QEMU 10.0.2: identity, level and features from
//! `query-cpu-model-expansion` (type full) under KVM, caches from a guest of `-smp 1`. docs/cpu.md shows how to repeat that.

mod epyc;
mod qemu64;
mod skylake_server;
mod x86_64;

use crate::cpu::model::Model;

/// All CPU models.
pub const MODELS: &[&Model] = &[&qemu64::V1, &x86_64::V2, &x86_64::V3, &epyc::V4, &skylake_server::V5];
