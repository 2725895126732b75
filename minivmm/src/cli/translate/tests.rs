//! Command lines in both monitors' words, and the shell that reads a line back.

use std::process::Command;

use super::{from_qemu, line, to_qemu};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// QEMU's documentation of microvm (docs/system/i386/microvm.rst): the example with ISA devices, and what it takes to have a match.
#[test]
fn the_documented_example_says_what_has_no_match() {
    let documented = "qemu-system-x86_64 -M microvm,x-option-roms=off,pit=off,pic=off,isa-serial=off,rtc=off -enable-kvm -cpu host -m 512m \
                      -smp 2 -kernel vmlinux -nodefaults -no-user-config -nographic -chardev stdio,id=virtiocon0 \
                      -device virtio-serial-device -device virtconsole,chardev=virtiocon0 -drive id=test,file=test.img,format=raw,if=none \
                      -device virtio-blk-device,drive=test -netdev tap,id=tap0,script=no,downscript=no -device virtio-net-device,netdev=tap0";
    let unmatched = from_qemu(&words(documented)).unwrap_err();
    for part in [
        "-M pit=off: ",
        "-M pic=off: ",
        "-M isa-serial=off: ",
        "-M microvm: ",
        "-global virtio-mmio.force-legacy=false: ",
        "-chardev id=virtiocon0: ",
        "-device virtio-serial-device: ",
        "-device virtconsole: ",
        "card tap0: ",
    ] {
        assert_eq!(unmatched.iter().filter(|line| line.starts_with(part)).count(), 1, "{part}: {unmatched:#?}");
    }
    assert_eq!(unmatched.len(), 9, "{unmatched:#?}");
}

const QEMU: &str = "qemu-system-x86_64 -M microvm,x-option-roms=off,rtc=on,acpi=on,pcie=off,ioapic2=off,rtc=off -global \
                    virtio-mmio.force-legacy=false -enable-kvm -cpu host -m 512m -smp 2 -kernel vmlinux -append quiet -nodefaults \
                    -no-user-config -nographic -serial stdio -drive id=test,file=a,,b.img,format=raw,if=none -device \
                    virtio-blk-device,drive=test -netdev tap,id=tap0,ifname=t0,script=no,downscript=no -device \
                    virtio-net-device,netdev=tap0,mac=52:54:00:12:34:56 -qmp unix:q,server,nowait -incoming unix:in";

#[test]
fn a_line_with_a_match_is_translated_and_back() {
    let ours = from_qemu(&words(QEMU)).unwrap();
    assert_eq!(
        line(&ours),
        "minivmm run --cpus 2 --kernel vmlinux --append quiet --control unix:q --incoming unix:in --cpu host --memory 512m \
         --serial stdio --disk a,,b.img --net tap=t0,mac=52:54:00:12:34:56"
    );
    let theirs = to_qemu(&ours).unwrap();
    assert_eq!(
        line(&theirs),
        "qemu-system-x86_64 -M microvm,acpi=on,pcie=off,ioapic2=off,rtc=off,auto-kernel-cmdline=off,accel=kvm -global \
         virtio-mmio.force-legacy=false -cpu host,enforce -m 524288K -smp 2 -display none -serial stdio -kernel vmlinux -append quiet \
         -drive id=disk0,if=none,format=raw,file=a,,b.img -device virtio-blk-device,drive=disk0 -netdev \
         tap,id=net0,ifname=t0,script=no,downscript=no -device virtio-net-device,netdev=net0,mac=52:54:00:12:34:56 -qmp \
         unix:q,server=on,wait=off -incoming unix:in -nodefaults -no-user-config"
    );
    // Each is a translation of the other from there on.
    let again = to_qemu(&from_qemu(&theirs).unwrap()).unwrap();
    assert_eq!(again, theirs);
}

#[test]
fn what_has_no_match_is_named_a_line_a_part() {
    for (change, expected) in [
        (("-cpu host", "-cpu Broadwell"), "-cpu Broadwell: 'Broadwell' is no model"),
        (("tap,id=tap0,ifname=t0,script=no,downscript=no", "user,id=tap0"), "-netdev user: "),
        (("microvm,", "q35,"), "-M: minivmm's machine is microvm"),
        (("-enable-kvm", ""), "-accel: "),
        (("format=raw", "format=qcow2"), "drive test: minivmm has raw images only"),
        (("-smp 2", "-smp 2,threads=2"), "-smp threads=2: "),
        (("-qmp unix:q,server,nowait", "-qmp stdio"), "-qmp stdio: "),
    ] {
        let unmatched = from_qemu(&words(&QEMU.replace(change.0, change.1))).unwrap_err();
        assert!(unmatched.len() == 1 && unmatched[0].starts_with(expected), "{expected}: {unmatched:#?}");
    }
    for (ours, expected) in [
        ("run --kernel k --lease l", "--lease: "),
        ("run --kernel k --disk d,ops-per-second=5", "--disk number 1: "),
        ("run --kernel k --serial file:f,max=8192", "--serial max: "),
        ("migrate --control unix:c unix:d", "only minivmm run has a match"),
        ("run --kernel k --cpus 0", "invalid value"),
    ] {
        let unmatched = to_qemu(&words(ours)).unwrap_err();
        assert!(unmatched.len() == 1 && unmatched[0].starts_with(expected), "{expected}: {unmatched:#?}");
    }
}

/// The oracle is the shell: it reads back each word, whatever is in it. All characters of ASCII but NUL, alone and next to
/// quotes, and words that would be a command, an option or nothing.
#[test]
fn a_shell_reads_the_line_back() {
    let mut words: Vec<String> = (1..128_u8).map(|byte| char::from(byte).to_string()).collect();
    words.extend((1..128_u8).map(|byte| format!("'{}'\\\"", char::from(byte))));
    words.extend(
        ["", "''", "'; exit 7; '", "$(exit 7)", "`exit 7`", "-n", "a b\nc", "~", "*", "ü€", "#x", "!x"]
            .map(str::to_owned),
    );
    let script = format!("printf '%s\\0' {}", line(&words));
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success());
    let read: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().split_terminator('\0').collect();
    assert_eq!(read, words);
}
