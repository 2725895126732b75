//! libFuzzer's driver for one target, which `VMSTATE_FUZZ_TARGET` names; the arguments are libFuzzer's.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmstate_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("VMSTATE_FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| panic!("VMSTATE_FUZZ_TARGET={name:?} is no target"))
});

fuzz_target!(|input: &[u8]| TARGET.run(input));
