//! Pairs of machines, and the expected differences.

use super::compare::{Difference, compare};
use super::facts::{Card, Disk, Facts};
use crate::kvm::state::Processor;
use crate::kvm::state::extra::Msr;
use crate::kvm::state::processor::Leaf;

fn leaf(function: u32, index: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf { function, index, flags: 0, eax, ebx, ecx, edx }
}

/// A Skylake server with AVX-512 at 2 GHz, with 2 vCPUs, 512 MiB, a disk and a network card.
fn machine() -> Facts {
    let leaves = vec![
        // "GenuineIntel"
        leaf(0x0, 0, 0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
        leaf(0x1, 0, 0x50654, 0x0002_0800, 0xfffa_3203, 0x1f8b_fbff),
        leaf(0x7, 0, 0, 0xd19f_47ab, 0x8, 0xac00_0400),
        leaf(0xa, 0, 0x0730_0402, 0, 0, 0x603),
        leaf(0xd, 0, 0xe7, 0x340, 0xa80, 0),
        leaf(0xd, 2, 0x100, 0x240, 0, 0),
        leaf(0xd, 5, 0x40, 0x440, 0, 0),
        leaf(0x8000_0001, 0, 0, 0, 0x121, 0x2c10_0800),
        leaf(0x8000_0008, 0, 0x302e, 0, 0, 0),
    ];
    let msrs = vec![Msr { index: 0x8b, value: 0x1_0000_0000 }, Msr { index: 0x10a, value: 0x2b }];
    let disks = vec![Disk { window: 7, sectors: 2048, read_only: false }];
    let cards = vec![Card { window: 6, mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56] }];
    Facts::new(2, 512 << 20, Processor::new(leaves, msrs, 2_000_000), disks, cards)
}

fn set(facts: &mut Facts, function: u32, index: u32, change: impl FnOnce(&mut Leaf)) {
    let leaves = &mut facts.processor.leaves;
    change(leaves.iter_mut().find(|leaf| (leaf.function, leaf.index) == (function, index)).unwrap());
}

fn list(guest: &Facts, here: &Facts) -> Vec<String> {
    compare(guest, here, false).iter().map(Difference::to_string).collect()
}

/// Returns the one difference after `change` at the source.
fn at_the_source(change: impl FnOnce(&mut Facts)) -> String {
    let mut guest = machine();
    change(&mut guest);
    let mut list = list(&guest, &machine());
    assert_eq!(list.len(), 1, "{list:?}");
    list.remove(0)
}

#[test]
fn like_machines_do_not_differ() {
    assert_eq!(list(&machine(), &machine()), [""; 0]);
    assert_eq!(list(&Facts::default(), &Facts::default()), [""; 0]);
}

/// The guest does not see features that only this host has, so they do not matter.
#[test]
fn a_better_host_takes_the_guest() {
    let mut here = machine();
    set(&mut here, 0x7, 0, |leaf| (leaf.ebx, leaf.ecx, leaf.edx) = (u32::MAX, u32::MAX, u32::MAX));
    set(&mut here, 0x8000_0008, 0, |leaf| leaf.eax = 0x3934);
    set(&mut here, 0xa, 0, |leaf| leaf.eax = 0x0730_0805);
    here.processor.leaves.push(leaf(0xd, 9, 8, 0xa80, 0, 0));
    here.processor.msrs[1].value = u64::MAX;
    here.processor.msrs.push(Msr { index: 0x345, value: 0x2a });
    // Caches, family, model and microcode are not compared: the guest keeps its own.
    here.processor.leaves.push(leaf(0x4, 0, 1, 2, 3, 4));
    set(&mut here, 0x1, 0, |leaf| leaf.eax = 0x606a6);
    here.processor.msrs[0].value = 7;
    assert_eq!(list(&machine(), &here), [""; 0]);
}

#[test]
fn features_are_named_in_one_list() {
    let mut here = machine();
    set(&mut here, 0x7, 0, |leaf| leaf.ebx &= !(1 << 16 | 1 << 31 | 1 << 15));
    set(&mut here, 0x1, 0, |leaf| leaf.ecx &= !(1 << 28));
    here.processor.msrs[1].value = 0x29;
    let mut guest = machine();
    set(&mut guest, 0x7, 0, |leaf| leaf.ebx |= 1 << 15);
    let expected = "the guest was shown CPU features that this host lacks: avx (leaf 0x1 ECX bit 28), leaf 0x7 EBX bit 15, \
                    avx512f (leaf 0x7 EBX bit 16), avx512vl (leaf 0x7 EBX bit 31), ibrs-all (MSR 0x10a bit 1) (migrate to a \
                    host whose CPU and KVM offer them, or start the guest anew here)";
    assert_eq!(list(&guest, &here), [expected]);
}

/// A guest that sees VMX or SVM may have switched it on, and no host accepts such a guest.
#[test]
fn nested_virtualization_is_a_feature_that_no_host_has() {
    let text = at_the_source(|guest| {
        set(guest, 0x1, 0, |leaf| leaf.ecx |= 1 << 5);
        set(guest, 0x8000_0001, 0, |leaf| leaf.ecx |= 1 << 2);
    });
    assert!(text.contains("lacks: vmx (leaf 0x1 ECX bit 5), svm (leaf 0x80000001 ECX bit 2) ("), "{text}");
}

/// Bits that follow from CR4 or the number of vCPUs, and bits that report weaknesses, are no features.
#[test]
fn what_is_no_feature_is_not_compared() {
    let mut guest = machine();
    set(&mut guest, 0x1, 0, |leaf| leaf.ecx |= 1 << 27);
    set(&mut guest, 0x7, 0, |leaf| leaf.ecx |= 1 << 4);
    guest.processor.msrs[1].value |= 1 << 2 | 1 << 19;
    let mut here = machine();
    set(&mut here, 0x1, 0, |leaf| (leaf.ecx, leaf.edx) = (leaf.ecx & !(1 << 27), leaf.edx & !(1 << 28)));
    assert_eq!(list(&guest, &here), [""; 0]);
}

#[test]
fn processors_of_another_vendor_are_distinguished() {
    let amd = |guest: &mut Facts| {
        set(guest, 0x0, 0, |leaf| (leaf.ebx, leaf.ecx, leaf.edx) = (0x6874_7541, 0x444d_4163, 0x6974_6e65));
    };
    assert_eq!(
        at_the_source(amd),
        "the guest's processor is of AuthenticAMD, this host's of GenuineIntel (migrate to a host of the same kind, or \
         start the guest anew here)"
    );
}

#[test]
fn sizes_and_numbers_of_the_processor_are_compared() {
    let end = " (migrate to a host of the same kind, or start the guest anew here)";
    for (function, index, eax, expected) in [
        (0xd, 5, 0x80, "XSAVE component 5 has another offset or another size"),
        (0x8000_0008, 0, 0x3034, "the guest was shown physical address bits: 52, this host has 46"),
        (0x8000_0008, 0, 0x392e, "the guest was shown linear address bits: 57, this host has 48"),
        (0xa, 0, 0x0730_0802, "the guest was shown performance counters: 8, this host has 4"),
        (0xa, 0, 0x0730_0405, "the guest was shown performance monitoring version 5, this host has 2"),
    ] {
        assert_eq!(
            at_the_source(|guest| set(guest, function, index, |leaf| leaf.eax = eax)),
            format!("{expected}{end}")
        );
    }
    let text = at_the_source(|guest| guest.processor.msrs.push(Msr { index: 0x345, value: 0x7 }));
    assert_eq!(text, format!("LBR and PEBS records have formats 0x7 at the source, 0x0 here (MSR 0x345){end}"));
}

/// The version of AVX10 (leaf 0x24), and the capabilities of SVM (leaf 0x8000_000a).
#[test]
fn leaves_that_describe_a_feature_have_to_be_the_same() {
    let end = " of CPUID says something else at the source (migrate to a host of the same kind, or start the guest anew here)";
    for function in [0x24, 0x8000_000a] {
        let text = at_the_source(|guest| guest.processor.leaves.push(leaf(function, 0, 0, 0x1_0001, 0, 0)));
        assert_eq!(text, format!("leaf {function:#x}.0{end}"));
    }
    // An informative number, a leaf of zeros, and a leaf that is equal on both sides.
    let mut guest = machine();
    guest.processor.leaves.extend([
        leaf(0x16, 0, 3000, 4000, 100, 0),
        leaf(0x25, 0, 0, 0, 0, 0),
        leaf(0x1d, 1, 1, 2, 3, 4),
    ]);
    let mut here = machine();
    here.processor.leaves.push(leaf(0x1d, 1, 1, 2, 3, 4));
    assert_eq!(list(&guest, &here), [""; 0]);
}

#[test]
fn a_tsc_at_another_rate_needs_scaling() {
    let text = at_the_source(|guest| guest.processor.tsc_khz = 4_000_000);
    assert_eq!(
        text,
        "the guest's TSC runs at 4000000 kHz, this host's at 2000000 kHz, and its KVM cannot scale it (migrate to a host \
         with the same TSC rate, or with TSC scaling)"
    );
    let with_rate = |tsc_khz| {
        let mut guest = machine();
        guest.processor.tsc_khz = tsc_khz;
        guest
    };
    // 250 ppm of 2 GHz are 500 kHz.
    for (rate, scales, differences) in [
        (2_000_500, false, 0),
        (1_999_501, false, 0),
        (2_000_502, false, 1),
        (1_999_499, false, 1),
        (4_000_000, true, 0),
        (0, false, 0),
    ] {
        assert_eq!(compare(&with_rate(rate), &machine(), scales).len(), differences, "{rate} kHz");
    }
}

#[test]
fn each_difference_names_what_to_change() {
    assert_eq!(
        at_the_source(|guest| guest.vcpus = 1),
        "the source has 1 vCPU, this machine 2 (start it with --cpus 1)"
    );
    assert_eq!(
        at_the_source(|guest| guest.ram_bytes = 1 << 30),
        "the source has 1024M of RAM, this machine 512M (start it with --memory 1024M)"
    );
    assert_eq!(
        at_the_source(|guest| guest.ram_bytes = (512 << 20) + 4096),
        "the source has 536875008 of RAM, this machine 512M (start it with --memory 536875008)"
    );
    assert_eq!(
        at_the_source(|guest| guest.disks.clear()),
        "the source has 0 disks, this machine 1 (give as many --disk, in the source's order)"
    );
    assert_eq!(
        at_the_source(|guest| guest.disks[0].sectors = 4096),
        "disk 1 has 4096 sectors at the source, 2048 here (give the source's image as --disk number 1)"
    );
    assert_eq!(
        at_the_source(|guest| guest.disks[0].read_only = true),
        "disk 1 is read-only at the source, and not here (give FILE,readonly as --disk number 1)"
    );
    assert_eq!(
        at_the_source(|guest| guest.cards[0].mac[5] = 0xab),
        "network card 1 has the address 52:54:00:12:34:ab at the source, 52:54:00:12:34:56 here (give \
         mac=52:54:00:12:34:ab as --net number 1)"
    );
    assert_eq!(
        at_the_source(|guest| guest.cards[0].window = 5),
        "network card 1 is in virtio window 5 at the source, in 6 here (give the devices in the source's order, this one as \
         --net number 1)"
    );
}

/// The window of a device follows from the number of devices: the only remedy is the same number of devices.
#[test]
fn a_device_too_few_moves_no_other() {
    let mut here = machine();
    here.disks.clear();
    here.cards[0].window = 7;
    let expected = "the source has 1 disk, this machine 0 (give as many --disk, in the source's order)";
    assert_eq!(list(&machine(), &here), [expected]);
}

/// Two disks of different sizes that are swapped: each is named.
#[test]
fn all_differences_are_reported_in_the_order_of_the_command_line() {
    let mut guest = machine();
    guest.vcpus = 8;
    guest.ram_bytes = 1 << 30;
    guest.disks.push(Disk { window: 6, sectors: 64, read_only: true });
    let mut here = machine();
    here.disks.insert(0, Disk { window: 7, sectors: 64, read_only: true });
    here.cards.clear();
    set(&mut guest, 0x7, 0, |leaf| leaf.ecx |= 1 << 16);
    guest.processor.tsc_khz = 1;
    let list = list(&guest, &here);
    let beginnings = [
        "the source has 8 vCPUs, this machine 2",
        "the source has 1024M of RAM, this machine 512M",
        "disk 1 has 2048 sectors at the source, 64 here",
        "disk 1 is read-only here, and not at the source",
        "disk 2 has 64 sectors at the source, 2048 here",
        "disk 2 is read-only at the source, and not here",
        "the source has 1 network card, this machine 0",
        "the guest was shown CPU features that this host lacks: la57 (leaf 0x7 ECX bit 16)",
        "the guest's TSC runs at 1 kHz, this host's at 2000000 kHz",
    ];
    assert_eq!(list.len(), beginnings.len(), "{list:#?}");
    for (text, beginning) in list.iter().zip(beginnings) {
        assert!(text.starts_with(beginning), "{text}");
    }
}
