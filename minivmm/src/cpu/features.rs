//! Names of CPU features, by register and bit: those of QEMU's `-cpu`, else of Linux's /proc/cpuinfo or the manuals (Intel
//! SDM volume 2, CPUID, and volume 4; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst).

use std::fmt;

/// Register that reports a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A register of a leaf of CPUID.
    Cpuid {
        /// EAX of the query.
        function: u32,
        /// ECX of the query.
        index: u32,
        /// Register of the answer.
        register: Register,
    },
    /// An MSR.
    Msr {
        /// Register number.
        index: u32,
    },
}

/// A register of a CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A register whose bits are features: a bit that is 1 at the source has to be 1 at the destination.
#[derive(Debug)]
pub struct Flags {
    /// Register that holds the bits.
    pub place: Place,
    /// Bits that are not features.
    pub ignored: u64,
    /// Names of the bits from 0 on, `-` for a bit without one.
    names: &'static str,
}

impl Flags {
    /// Describes the bit: its feature's name, if there is one, and its place.
    pub fn describe(&self, bit: u32) -> String {
        match self.name(bit) {
            Some(name) => format!("{name} ({} bit {bit})", self.place),
            None => format!("{} bit {bit}", self.place),
        }
    }

    /// Name of the bit's feature, if there is one.
    pub fn name(&self, bit: u32) -> Option<&'static str> {
        self.names.split_whitespace().nth(bit as usize).filter(|&name| name != "-")
    }

    /// Whether a user may name these features. They may, if these are bits of CPUID that do not follow from others: not the
    /// parts of the XSAVE area, and no bits that repeat CR4 or the number of vCPUs.
    fn settable(&self) -> bool {
        matches!(self.place, Place::Cpuid { function, index, register }
            if function != 0xd || (index, register) == (1, Register::Eax))
    }

    /// Bits of the register that have names.
    pub fn named(&self) -> u64 {
        let names = (0..).zip(self.names.split_whitespace());
        names.filter(|(_, name)| *name != "-").fold(0, |bits, (bit, _)| bits | 1 << bit)
    }
}

/// Bits of CPUID that are switched by one name; `kvmclock` names two, as in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    name: &'static str,
}

/// Other names that QEMU takes (target/i386/cpu.c, `x86_cpu_initfn`).
const ALIASES: &[(&str, &str)] = &[
    ("ffxsr", "fxsr-opt"),
    ("i64", "lm"),
    ("pclmuldq", "pclmulqdq"),
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("xd", "nx"),
];

impl Feature {
    /// Looks up a feature by name, `_` and `-` being equal; `None` if no bit of CPUID has the name.
    pub fn find(name: &str) -> Option<Self> {
        let dashed = name.replace('_', "-");
        let name = ALIASES.iter().find(|(alias, _)| *alias == dashed).map_or(dashed.as_str(), |(_, name)| name);
        let mut names = FLAGS.iter().filter(|flags| flags.settable()).flat_map(|flags| flags.names.split_whitespace());
        names.find(|&known| known == name && known != "-").map(|name| Self { name })
    }

    /// Name that QEMU prints.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Bits of the feature.
    pub fn bits(self) -> impl Iterator<Item = (Place, u32)> {
        FLAGS.iter().filter(|flags| flags.settable()).flat_map(move |flags| {
            let bits = (0..).zip(flags.names.split_whitespace()).filter(move |(_, name)| *name == self.name);
            bits.map(|(bit, _)| (flags.place, bit))
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpuid { function, index: 0, register } => write!(f, "leaf {function:#x} {register}"),
            Self::Cpuid { function, index, register } => write!(f, "leaf {function:#x}.{index} {register}"),
            Self::Msr { index } => write!(f, "MSR {index:#x}"),
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        })
    }
}

const fn cpuid(function: u32, index: u32, register: Register, ignored: u64, names: &'static str) -> Flags {
    Flags { place: Place::Cpuid { function, index, register }, ignored, names }
}

const fn msr(index: u32, ignored: u64, names: &'static str) -> Flags {
    Flags { place: Place::Msr { index }, ignored, names }
}

/// OSXSAVE and OSPKE repeat bits that the guest set in CR4.
const OSXSAVE: u64 = 1 << 27;
const OSPKE: u64 = 1 << 4;
/// HTT says that there is more than one vCPU; the number of vCPUs is compared instead.
const HTT: u64 = 1 << 28;
/// Bits of IA32_ARCH_CAPABILITIES that report a weakness, RSBA and RRSBA: a guest may keep its workaround on a host without the
/// weakness.
const WEAKNESSES: u64 = 1 << 2 | 1 << 19;
/// IA32_PERF_CAPABILITIES: formats of LBR and PEBS records, which are numbers.
pub const PERF_FORMATS: u64 = 0x3f | 0xf << 8;

/// All registers of features, ordered by their numbers.
pub const FLAGS: &[Flags] = &[
    cpuid(
        0x1,
        0,
        Register::Ecx,
        OSXSAVE,
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid dca sse4.1 sse4.2 x2apic \
         movbe popcnt tsc-deadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    cpuid(
        0x1,
        0,
        Register::Edx,
        HTT,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss \
         ht tm ia64 pbe",
    ),
    cpuid(0x6, 0, Register::Eax, 0, "dtherm ida arat - pln"),
    cpuid(
        0x7,
        0,
        Register::Ebx,
        0,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - avx512f avx512dq rdseed adx smap \
         avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    cpuid(
        0x7,
        0,
        Register::Ecx,
        OSPKE,
        "- avx512vbmi umip pku ospke waitpkg avx512vbmi2 shstk gfni vaes vpclmulqdq avx512vnni avx512bitalg - \
         avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks",
    ),
    cpuid(
        0x7,
        0,
        Register::Edx,
        0,
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - tsx-ldtrk - - arch-lbr \
         ibt - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities core-capability ssbd",
    ),
    cpuid(
        0x7,
        1,
        Register::Eax,
        0,
        "sha512 sm3 sm4 - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx-fp16 - avx-ifma",
    ),
    cpuid(
        0x7,
        1,
        Register::Edx,
        0,
        "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti",
    ),
    cpuid(0x7, 2, Register::Edx, 0, "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no"),
    cpuid(
        0xd,
        0,
        Register::Eax,
        0,
        "xcr0-x87 xcr0-sse xcr0-avx xcr0-bndregs xcr0-bndcsr xcr0-opmask xcr0-zmm-hi256 xcr0-hi16-zmm xcr0-pt xcr0-pkru - - - - \
         - - - xcr0-tilecfg xcr0-tiledata",
    ),
    cpuid(0xd, 0, Register::Edx, 0, ""),
    cpuid(0xd, 1, Register::Eax, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    cpuid(0xd, 1, Register::Ecx, 0, ""),
    cpuid(0xd, 1, Register::Edx, 0, ""),
    cpuid(
        0x4000_0001,
        0,
        Register::Eax,
        0,
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - kvm-pv-tlb-flush \
         kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id - - - - - - - - \
         kvmclock-stable-bit",
    ),
    cpuid(
        0x8000_0001,
        0,
        Register::Ecx,
        0,
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - \
         nodeid-msr - tbm topoext perfctr-core perfctr-nb - - - - mwaitx",
    ),
    cpuid(
        0x8000_0001,
        0,
        Register::Edx,
        0,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    cpuid(0x8000_0007, 0, Register::Ebx, 0, "overflow-recov succor"),
    cpuid(0x8000_0007, 0, Register::Edx, 0, "- - - - - - - - invtsc"),
    cpuid(
        0x8000_0008,
        0,
        Register::Ebx,
        0,
        "clzero - xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs amd-stibp - stibp-always-on - - - - - - amd-ssbd virt-ssbd \
         amd-no-ssb - amd-psfd",
    ),
    cpuid(
        0x8000_0021,
        0,
        Register::Eax,
        0,
        "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs",
    ),
    msr(0xce, 0, "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - cpuid-fault"),
    msr(
        0x10a,
        WEAKNESSES,
        "rdctl-no ibrs-all rsba skip-l1dfl-vmentry ssb-no mds-no pschange-mc-no tsx-ctrl taa-no - - - - sbdr-ssdp-no fbsdp-no \
         psdp-no - fb-clear - rrsba bhi-no - - - pbrsb-no gds-ctrl gds-no rfds-no rfds-clear",
    ),
    msr(0x345, PERF_FORMATS, ""),
    msr(0xc001_1029, 0, "- lfence-serializing"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn named(function: u32, index: u32, register: Register, bit: u32) -> String {
        let place = Place::Cpuid { function, index, register };
        FLAGS.iter().find(|flags| flags.place == place).unwrap().describe(bit)
    }

    /// Bits from the manuals, one after each gap in the lists.
    #[test]
    fn bits_have_the_names_of_the_manuals() {
        use Register::{Eax, Ebx, Ecx, Edx};
        for (function, index, register, bit, name) in [
            (0x1, 0, Ecx, 5, "vmx (leaf 0x1 ECX bit 5)"),
            (0x1, 0, Ecx, 12, "fma (leaf 0x1 ECX bit 12)"),
            (0x1, 0, Ecx, 30, "rdrand (leaf 0x1 ECX bit 30)"),
            (0x1, 0, Edx, 26, "sse2 (leaf 0x1 EDX bit 26)"),
            (0x7, 0, Ebx, 16, "avx512f (leaf 0x7 EBX bit 16)"),
            (0x7, 0, Ebx, 31, "avx512vl (leaf 0x7 EBX bit 31)"),
            (0x7, 0, Ebx, 15, "leaf 0x7 EBX bit 15"),
            (0x7, 0, Ecx, 16, "la57 (leaf 0x7 ECX bit 16)"),
            (0x7, 0, Ecx, 31, "pks (leaf 0x7 ECX bit 31)"),
            (0x7, 0, Edx, 10, "md-clear (leaf 0x7 EDX bit 10)"),
            (0x7, 0, Edx, 31, "ssbd (leaf 0x7 EDX bit 31)"),
            (0x7, 1, Eax, 23, "avx-ifma (leaf 0x7.1 EAX bit 23)"),
            (0x7, 1, Edx, 14, "prefetchiti (leaf 0x7.1 EDX bit 14)"),
            (0xd, 0, Eax, 18, "xcr0-tiledata (leaf 0xd EAX bit 18)"),
            (0xd, 1, Eax, 3, "xsaves (leaf 0xd.1 EAX bit 3)"),
            (0x4000_0001, 0, Eax, 24, "kvmclock-stable-bit (leaf 0x40000001 EAX bit 24)"),
            (0x8000_0001, 0, Ecx, 2, "svm (leaf 0x80000001 ECX bit 2)"),
            (0x8000_0001, 0, Ecx, 29, "mwaitx (leaf 0x80000001 ECX bit 29)"),
            (0x8000_0001, 0, Edx, 29, "lm (leaf 0x80000001 EDX bit 29)"),
            (0x8000_0007, 0, Edx, 8, "invtsc (leaf 0x80000007 EDX bit 8)"),
            (0x8000_0008, 0, Ebx, 25, "virt-ssbd (leaf 0x80000008 EBX bit 25)"),
            (0x8000_0021, 0, Eax, 8, "auto-ibrs (leaf 0x80000021 EAX bit 8)"),
        ] {
            assert_eq!(named(function, index, register, bit), name);
        }
        let msr = |index| FLAGS.iter().find(|flags| flags.place == Place::Msr { index }).unwrap();
        assert_eq!(msr(0x10a).describe(28), "rfds-clear (MSR 0x10a bit 28)");
        assert_eq!(msr(0x10a).describe(20), "bhi-no (MSR 0x10a bit 20)");
        assert_eq!(msr(0xce).describe(31), "cpuid-fault (MSR 0xce bit 31)");
        assert_eq!(msr(0x345).describe(40), "MSR 0x345 bit 40");
    }

    #[test]
    fn features_are_found_by_each_of_their_names() {
        let bits = |name| Feature::find(name).unwrap().bits().collect::<Vec<_>>();
        let place = |function, index, register| Place::Cpuid { function, index, register };
        for name in ["sse4.1", "sse4-1", "sse4_1"] {
            assert_eq!(bits(name), [(place(0x1, 0, Register::Ecx), 19)]);
        }
        assert_eq!(bits("xsaves"), [(place(0xd, 1, Register::Eax), 3)]);
        let paravirtual = place(0x4000_0001, 0, Register::Eax);
        assert_eq!(bits("kvmclock"), [(paravirtual, 0), (paravirtual, 3)]);
        for name in ["", "-", "no-such", "xcr0-avx", "rdctl-no"] {
            assert_eq!(Feature::find(name), None, "{name}");
        }
    }

    #[test]
    fn no_register_has_more_than_32_names_or_is_there_twice() {
        for (n, flags) in FLAGS.iter().enumerate() {
            assert!(flags.names.split_whitespace().count() <= 32, "{}", flags.place);
            assert!(FLAGS[n + 1..].iter().all(|other| other.place != flags.place), "{}", flags.place);
        }
    }
}
