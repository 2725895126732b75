//! Remedies for sections and subsections that a QEMU sends and this machine lacks, or the other way round: each names the
//! option of QEMU's command line.

const NESTED: &str =
    "nested virtualization is not migrated; end the guest's own guests and start QEMU with -cpu …,-svm,-vmx";
const HYPERV: &str = "Hyper-V's interfaces are not here; start QEMU with a -cpu without hv-…";
const AMX: &str = "AMX is not migrated; start QEMU with -cpu …,-amx-tile,-amx-bf16,-amx-int8,-xfd";

/// Names of sections, and of subsections of `cpu` (target/i386/machine.c), each with its remedy.
pub(super) const REMEDIES: &[(&str, &str)] = &[
    ("mc146818rtc", "this machine has no real-time clock; start QEMU with -M microvm,rtc=off"),
    ("ioapic", "this machine has one I/O APIC; start QEMU with -M microvm,ioapic2=off"),
    ("i8254", "this machine has a timer chip; start QEMU with -M microvm,pit=on"),
    ("i8259", "this machine has two interrupt controllers; start QEMU with -M microvm,pic=on"),
    ("serial", "this machine has one serial port; start QEMU with -M microvm,isa-serial=on and one -serial"),
    ("acpi-ged", "this machine has ACPI; start QEMU with -M microvm,acpi=on"),
    ("kvmclock", "this machine runs under KVM; start QEMU with -accel kvm"),
    ("slirp", "QEMU's user-mode network is not here; give both sides a tap or passt (-netdev stream)"),
    ("cpu/mpx", "MPX is not migrated; start QEMU with -cpu …,-mpx"),
    ("cpu/intel_amx_xtile", AMX),
    ("cpu/msr_xfd", AMX),
    ("cpu/pkrs", "supervisor protection keys are not migrated; start QEMU with -cpu …,-pks"),
    ("cpu/intel_pt", "Intel PT is not migrated; start QEMU with -cpu …,-intel-pt"),
    ("cpu/arch_lbr", "last branch records are not migrated; start QEMU with -cpu …,-arch-lbr"),
    ("cpu/intel_sgx", "SGX is not migrated; start QEMU with -cpu …,-sgx"),
    ("cpu/fred", "FRED is not migrated; start QEMU with -cpu …,-fred"),
    ("cpu/msr_hwcr", "MSR HWCR is not migrated once the guest has written it; start QEMU with another -cpu than host"),
    ("cpu/triple_fault", "the guest is being shut down by a triple fault; migrate it once it has been reset"),
    ("cpu/exception_info", NESTED),
    ("cpu/svm_guest", NESTED),
    ("cpu/svn_npt", NESTED),
    ("cpu/msr_hyperv_hypercall", HYPERV),
    ("cpu/msr_hyperv_vapic", HYPERV),
    ("cpu/msr_hyperv_time", HYPERV),
    ("cpu/msr_hyperv_crash", HYPERV),
    ("cpu/msr_hyperv_runtime", HYPERV),
    ("cpu/msr_hyperv_synic", HYPERV),
    ("cpu/msr_hyperv_stimer", HYPERV),
    ("cpu/msr_hyperv_reenlightenment", HYPERV),
    ("cpu/xen_vcpu", "Xen's interfaces are not here; start QEMU with an -accel kvm without xen-version"),
];
