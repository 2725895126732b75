//! Offers of hosts, written out, and the CPUID that a guest gets from them.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::leaves::Leaves;
use super::{Offer, show, with_apic_id};
use crate::config::Cpu;
use crate::cpu::{Choice, FLAGS, Place};

fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn supported() -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        leaf(1, 0x800f12, 0x0514_0800, 0x200, 0x1000_0010),
        leaf(0xb, 1, 2, 3, 4),
        leaf(0x4000_0001, 0xffff_ffff, 0, 0, 0),
        leaf(0x8000_0000, 0x8000_001e, 0, 0, 0),
        leaf(0x8000_0001, 0x800f12, 0, 0x35c2_33ff, 0x2fd3_fbff),
        leaf(0x8000_0007, 0, 0, 0, 0x100),
        leaf(0x8000_000a, 1, 0x8000, 0, 0x1bcff),
    ]
}

fn offer(leaves: &[kvm_cpuid_entry2], tsc_deadline: bool) -> Offer {
    Offer::new(&CpuId::from_entries(leaves).unwrap(), tsc_deadline, [[0x2044_4d41; 4], [0; 4], [0; 4]])
}

fn host(cpus: u8, tsc_deadline: bool) -> CpuId {
    show(&offer(&supported(), tsc_deadline), &Choice::host(), cpus).unwrap()
}

fn find(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    Leaves::new(cpuid).get(function, index)
}

/// Bits from the Intel SDM (leaves 1 and 0xb), the AMD APM (0x8000_0008) and Documentation/virt/kvm/x86/cpuid.rst.
#[test]
fn topology_is_the_machines_own() {
    let cpuid = with_apic_id(&host(3, true), 2);
    assert_eq!(find(&cpuid, 1, 0), [0x800f12, 0x0203_0800, 0x8100_0200, 0x1000_0010]);
    assert_eq!(find(&cpuid, 0xb, 1), [2, 3, 0x201, 2]);
    assert_eq!(find(&cpuid, 0x4000_0001, 0)[0], 0x0100_feff);
    assert_eq!(find(&cpuid, 0x8000_0002, 0), [0x2044_4d41; 4]);
    assert_eq!(find(&cpuid, 0x8000_0007, 0), [0, 3, 0, 0], "overflow-recov and succor, no invtsc");
    assert_eq!(find(&cpuid, 0x8000_0008, 0)[2], 0x2002);
    assert_eq!(find(&cpuid, 0x8000_001e, 0), [2, 2, 0, 0]);
    assert_eq!(cpuid.as_slice().iter().filter(|entry| entry.function == 0xb).count(), 3);
}

/// An AMD host's offer, and an Intel one's: VMX is leaf 1 ECX bit 5, SMX bit 6 (Intel SDM volume 2, CPUID); SVM is
/// leaf 0x8000_0001 ECX bit 2, SKINIT bit 12, and leaf 0x8000_000a describes SVM (AMD APM volume 3, appendix E).
#[test]
fn nested_virtualization_is_masked() {
    let mut supported = supported();
    supported[1].ecx = 0xfeda_7fff;
    let cpuid = show(&offer(&supported, true), &Choice::host(), 1).unwrap();
    assert_eq!(find(&cpuid, 1, 0)[2], 0xffda_7f9f);
    assert_eq!(find(&cpuid, 0x8000_0001, 0)[2], 0x35c2_23fb);
    assert_eq!(find(&cpuid, 0x8000_000a, 0), [0; 4]);
}

#[test]
fn one_cpu_is_not_multithreaded() {
    let cpuid = host(1, false);
    assert_eq!(find(&cpuid, 1, 0), [0x800f12, 0x0000_0800, 0x8000_0200, 0x0000_0010]);
    assert_eq!(find(&cpuid, 0x8000_0008, 0)[2], 0);
}

fn choose(text: &str) -> Choice {
    Choice::new(&text.parse::<Cpu>().unwrap()).unwrap()
}

/// An AMD host with all features, and with the given leaf 1 and 0x8000_0008.
fn full(signature: u32, address_bits: u32) -> Vec<kvm_cpuid_entry2> {
    let mut leaves =
        vec![leaf(0, 0x20, 0x6874_7541, 0x444d_4163, 0x6974_6e65), leaf(0x8000_0000, 0x8000_0028, 0, 0, 0)];
    for flags in FLAGS {
        if let Place::Cpuid { function, index, .. } = flags.place {
            leaves.push(kvm_cpuid_entry2 { index, ..leaf(function, !0, !0, !0, !0) });
        }
    }
    leaves.dedup_by_key(|leaf| (leaf.function, leaf.index));
    leaves.push(kvm_cpuid_entry2 { index: 2, ..leaf(0xd, 0x100, 0x240, 0, 0) });
    for leaf in &mut leaves {
        match leaf.function {
            1 => leaf.eax = signature,
            0x8000_0008 => leaf.eax = address_bits,
            _ => {}
        }
    }
    leaves
}

/// One host has only the model's features, is of another generation and has fewer address bits; the other has all features.
#[test]
fn a_model_is_the_same_on_any_host_that_can_give_it() {
    let [old, new] = [(0x800f12, 0x3030), (0xa10f11, 0x3934)].map(|(signature, bits)| full(signature, bits));
    for model in ["qemu64", "x86-64-v2", "EPYC", "EPYC,-avx2,+umip"] {
        let shown = show(&offer(&new, true), &choose(model), 2).unwrap();
        let mut old = old.clone();
        for leaf in old.iter_mut().filter(|leaf| !matches!(leaf.function, 0 | 0xd | 0x8000_0000 | 0x8000_0008)) {
            let [_, ebx, ecx, edx] = find(&shown, leaf.function, leaf.index);
            (leaf.ebx, leaf.ecx, leaf.edx) = (ebx, ecx, edx);
        }
        let there = show(&offer(&old, false), &choose(model), 2).unwrap();
        assert_eq!(shown.as_slice(), there.as_slice(), "{model}");
    }
}

/// Each feature of the model is named in the error if the offer lacks it, and no other is; so is a feature that the user added.
#[test]
fn a_feature_that_the_host_cannot_give_is_named() {
    for (function, index, bit, register, name) in [
        (0x1, 0, 28, 2, "avx (leaf 0x1 ECX bit 28)"),
        (0x7, 0, 5, 1, "avx2 (leaf 0x7 EBX bit 5)"),
        (0xd, 1, 3, 0, "xsaves (leaf 0xd.1 EAX bit 3)"),
        (0x8000_0008, 0, 12, 1, "ibpb (leaf 0x80000008 EBX bit 12)"),
        (0x8000_0021, 0, 8, 0, "auto-ibrs (leaf 0x80000021 EAX bit 8)"),
    ] {
        let mut leaves = full(0x800f12, 0x3030);
        let leaf = leaves.iter_mut().find(|leaf| (leaf.function, leaf.index) == (function, index)).unwrap();
        *[&mut leaf.eax, &mut leaf.ebx, &mut leaf.ecx, &mut leaf.edx][register] &= !(1 << bit);
        let error = show(&offer(&leaves, true), &choose("EPYC,+auto-ibrs"), 1).unwrap_err().to_string();
        let short = name.split(' ').next().unwrap();
        assert_eq!(
            error,
            format!(
                "--cpu: this host's CPU and KVM cannot give EPYC-v4 its {name}; use a host that has them, another model, or leave \
                 them out (,-{short})"
            )
        );
    }
}

/// XSAVE parts of SSE, AVX and features that depend on AVX: XCR0 has no part that no feature needs.
#[test]
fn xsave_has_the_parts_that_the_features_need() {
    let mut leaves = full(0x800f12, 0x3030);
    leaves.push(kvm_cpuid_entry2 { index: 5, ..leaf(0xd, 0x40, 0x440, 0, 0) });
    let offer = offer(&leaves, true);
    let area = |text: &str| {
        let cpuid = show(&offer, &choose(text), 1).unwrap();
        (find(&cpuid, 0xd, 0), find(&cpuid, 0xd, 2)[0], find(&cpuid, 0xd, 5)[0])
    };
    assert_eq!(area("EPYC"), ([0b111, 0x240, 0x340, 0], 0x100, 0));
    assert_eq!(area("EPYC,-avx,-avx2,-f16c,-fma"), ([0b11, 0x240, 0x240, 0], 0, 0));
    assert_eq!(area("EPYC,-xsave"), ([0; 4], 0, 0));
    assert_eq!(area("qemu64"), ([0; 4], 0, 0));
}

#[test]
fn an_invariant_tsc_is_offered_only_on_request() {
    let edx = |text: &str| find(&show(&offer(&supported(), true), &choose(text), 1).unwrap(), 0x8000_0007, 0)[3];
    assert_eq!((edx("host"), edx("host,+invtsc"), edx("host,-invtsc")), (0, 0x100, 0));
}
