//! Translations of command lines in both directions, and the quoting for a shell.

use std::process::Command;

use super::{from_qemu, line, to_qemu};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The three examples of QEMU's documentation of microvm (docs/system/i386/microvm.rst), and command lines that other projects
/// document: each part without a match has a line that begins as listed, and there are no other lines.
#[test]
fn documented_examples_say_what_has_no_match() {
    const COMMON: &str = "-enable-kvm -cpu host -m 512m -smp 2 -kernel vmlinux -nodefaults -no-user-config -nographic \
                          -drive id=test,file=test.img,format=raw,if=none -device virtio-blk-device,drive=test \
                          -netdev tap,id=tap0,script=no,downscript=no -device virtio-net-device,netdev=tap0 ";
    const HVC: &str = "-append console=hvc0 -chardev stdio,id=virtiocon0 -device virtio-serial-device -device \
                       virtconsole,chardev=virtiocon0";
    let always = ["-M microvm: ", "-global virtio-mmio.force-legacy=false: ", "-netdev tap: "];
    let console =
        ["-serial none: ", "-chardev id=virtiocon0: ", "-device virtio-serial-device: ", "-device virtconsole: "];
    let documented = [
        (format!("-M microvm {COMMON} -serial stdio -append console=ttyS0"), vec![]),
        (
            format!("-M microvm,x-option-roms=off,isa-serial=off,rtc=off {COMMON} {HVC}"),
            [&console[..], &["-M isa-serial=off: "]].concat(),
        ),
        (
            format!("-M microvm,x-option-roms=off,pit=off,pic=off,isa-serial=off,rtc=off {COMMON} {HVC}"),
            [&console[..], &["-M pit=off: ", "-M pic=off: ", "-M isa-serial=off: "]].concat(),
        ),
        (
            format!(
                "-M microvm,accel=kvm:tcg,acpi=on,mem-merge=on,pcie=on,usb=off {COMMON} -serial chardev:out -chardev \
                     stdio,id=out,signal=off -device virtio-rng-device -sandbox on -object rng-random,id=rng"
            ),
            vec!["-M pcie=on: ", "-device virtio-rng-device: ", "-object "],
        ),
        (
            format!(
                "-M microvm,acpi=off -no-acpi {COMMON} -serial stdio -bios qboot.rom -daemonize -monitor telnet::1,server"
            ),
            vec!["-M acpi=off: ", "-no-acpi: ", "-bios: ", "-daemonize: ", "-monitor "],
        ),
        (
            format!(
                "-M microvm {COMMON} -serial stdio -netdev bridge,id=b,br=br0 -device virtio-net-device,netdev=b -drive \
                     file=b.img,format=raw,if=virtio -device vhost-vsock-device,guest-cid=3"
            ),
            vec!["-netdev bridge: ", "file=b.img,format=raw,if=virtio: ", "-device vhost-vsock-device: "],
        ),
    ];
    for (example, parts) in documented {
        let unmatched = from_qemu(&words(&format!("qemu-system-x86_64 {example}"))).unwrap_err();
        let parts = [&always[..], &parts].concat();
        for part in &parts {
            assert_eq!(unmatched.iter().filter(|line| line.starts_with(part)).count(), 1, "{part}: {unmatched:#?}");
        }
        assert_eq!(unmatched.len(), parts.len(), "{unmatched:#?}");
    }
}

/// The first example has a match once the advice in its lines is followed.
#[test]
fn the_first_documented_example_has_a_match_once_its_lines_are_followed() {
    let followed = "qemu-system-x86_64 -M microvm,ioapic2=off -global virtio-mmio.force-legacy=false -enable-kvm -cpu host -m 512m \
                    -smp 2 -kernel vmlinux -append console=ttyS0 -nodefaults -no-user-config -nographic -serial stdio -drive \
                    id=test,file=test.img,format=raw,if=none -device virtio-blk-device,drive=test -netdev \
                    tap,id=tap0,ifname=tap0,script=no,downscript=no -device virtio-net-device,netdev=tap0";
    assert_eq!(
        line(&from_qemu(&words(followed)).unwrap()),
        "minivmm run --cpus 2 --kernel vmlinux --append console=ttyS0 --cpu host --memory 512m --serial stdio --disk test.img --net \
         tap=tap0"
    );
}

/// Two drives without a name, or with the same name, are refused: without one of them the machine would be another one.
#[test]
fn no_drive_is_lost() {
    let with = |drives: &str| from_qemu(&words(&QEMU.replace("-drive id=test,", drives))).unwrap_err();
    let nameless = with("-drive file=x,format=raw,if=none -drive file=y,format=raw,if=none -drive id=test,");
    assert!(
        nameless.len() == 2 && nameless[0].starts_with("file=x,") && nameless[1].starts_with("file=y,"),
        "{nameless:#?}"
    );
    let doubled = with("-drive id=test,file=x,format=raw,if=none -drive id=test,");
    assert!(doubled.len() == 1 && doubled[0].contains("test is there twice"), "{doubled:#?}");
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
         -drive id=virtio0,if=none,format=raw,file=a,,b.img -device virtio-blk-device,drive=virtio0 -netdev \
         tap,id=net0,ifname=t0,script=no,downscript=no -device virtio-net-device,netdev=net0,mac=52:54:00:12:34:56 -qmp \
         unix:q,server=on,wait=off -incoming unix:in -nodefaults -no-user-config"
    );
    // From here on each line is the translation of the other.
    let again = to_qemu(&from_qemu(&theirs).unwrap()).unwrap();
    assert_eq!(again, theirs);
}

/// QEMU's addresses as its `-incoming` names them (qemu-options.hx).
#[test]
fn where_a_source_is_awaited_is_the_same_in_both() {
    let with = |at: &str| {
        let mut line = words(QEMU);
        *line.last_mut().unwrap() = at.into();
        line
    };
    for at in ["defer", "tcp:h:4444", "vsock:3:1234", "fd:5", "exec:cat file", "file:state,offset=0x1000"] {
        let ours = from_qemu(&with(at)).unwrap();
        let place = ours.iter().position(|word| word == "--incoming").unwrap();
        assert_eq!(ours[place + 1], at);
    }
    for at in ["rdma:h:4444", "tcp:h", r#"{"channel-type":"main"}"#] {
        let unmatched = from_qemu(&with(at)).unwrap_err();
        assert_eq!(unmatched.len(), 1, "{unmatched:#?}");
        assert!(unmatched[0].starts_with(&format!("-incoming {at}")), "{unmatched:#?}");
    }
}

/// QEMU's options for the mode `cpr-transfer` (docs/devel/migration/CPR.rst).
#[test]
fn memory_that_can_be_handed_over_is_the_same_in_both() {
    let memfd = "-object memory-backend-memfd,id=ram0,size=512M,share=on";
    let machine = "microvm,memory-backend=ram0,aux-ram-share=on,";
    let cpr = r#"{"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":"cpr"}}"#;
    let with = |machine: &str, more: &str| words(&format!("{} {more}", QEMU.replace("microvm,", machine)));
    let ours = from_qemu(&with(machine, &format!("{memfd} -incoming {cpr}"))).unwrap();
    let incoming = |line: &[String]| {
        let values = line.windows(2).filter(|two| two[0].trim_start_matches('-') == "incoming");
        values.map(|two| two[1].clone()).collect::<Vec<_>>()
    };
    assert_eq!(incoming(&ours), ["unix:in", cpr]);
    assert!(line(&ours).contains(" --memory 512m --share-memory on "), "{ours:?}");
    let theirs = to_qemu(&ours).unwrap();
    let shown = line(&theirs);
    assert!(shown.contains(",accel=kvm,memory-backend=microvm.ram,aux-ram-share=on -object "), "{shown}");
    assert!(shown.contains(" memory-backend-memfd,id=microvm.ram,size=524288K,share=on "), "{shown}");
    assert_eq!(incoming(&theirs).len(), 2);
    assert_eq!(to_qemu(&from_qemu(&theirs).unwrap()).unwrap(), theirs);
    // A source waits for nobody.
    let source: Vec<_> = from_qemu(&with(machine, memfd)).unwrap();
    assert!(line(&to_qemu(&source).unwrap()).contains("aux-ram-share=on -object "));

    let private = from_qemu(&with(machine, &memfd.replace("share=on", "share=off"))).unwrap();
    assert!(!line(&private).contains("--share-memory"), "{private:?}");
    for (machine, more, expected) in [
        ("microvm,", memfd.to_owned(), "-object memory-backend-memfd,id=ram0: the machine does not use it"),
        (machine, String::new(), "-M memory-backend=ram0: there is no"),
        (machine, memfd.replace("512M", "1G"), "-object memory-backend-memfd,id=ram0,size=1G: give the size of -m"),
        (machine, format!("{memfd},hugetlb=on"), "-object memory-backend-memfd,id=ram0,hugetlb=on: "),
        (
            "microvm,",
            "-object memory-backend-file,id=f,size=512M,mem-path=/dev/shm/f".into(),
            "-object memory-backend-file,id=f,size=512M,mem-path=/dev/shm/f: minivmm makes the guest's memory itself",
        ),
    ] {
        let unmatched = from_qemu(&with(machine, &more)).unwrap_err();
        assert!(unmatched.len() == 1 && unmatched[0].starts_with(expected), "{expected}: {unmatched:#?}");
    }
}

/// The `-netdev stream` that passt 2023 prints for QEMU when it starts.
#[test]
fn a_card_on_passts_socket_is_one_in_both() {
    let passts = "stream,id=s,server=off,addr.type=unix,addr.path=/tmp/a,,b.socket";
    let with = |netdev: &str| {
        QEMU.replace("tap,id=tap0,ifname=t0,script=no,downscript=no", netdev).replace("netdev=tap0", "netdev=s")
    };
    let ours = from_qemu(&words(&with(passts))).unwrap();
    assert!(line(&ours).ends_with(" --net stream=/tmp/a,,b.socket,mac=52:54:00:12:34:56"), "{ours:?}");
    let again = from_qemu(&words(&with(&format!("{passts},reconnect-ms=50")))).unwrap();
    assert_eq!(again, ours);
    let theirs = line(&to_qemu(&ours).unwrap());
    assert!(theirs.contains(&format!(" -netdev {} ", passts.replace("id=s", "id=net0"))), "{theirs}");
    for (netdev, expected) in [
        ("stream,id=s,server=on,addr.type=unix,addr.path=p", "-netdev stream,server=on: "),
        (
            "stream,id=s,server=off,addr.type=inet,addr.host=h,addr.port=1",
            "-netdev stream: minivmm connects to a unix socket",
        ),
        ("passt,id=s", "-netdev passt: start it yourself"),
    ] {
        let unmatched = from_qemu(&words(&with(netdev))).unwrap_err();
        assert!(unmatched.len() == 1 && unmatched[0].starts_with(expected), "{expected}: {unmatched:#?}");
    }
}

/// Properties of virtio-net-device as QEMU 10's `-device virtio-net-device,help` lists them.
#[test]
fn a_card_without_udp_segmentation_is_one_in_both() {
    let without = format!("{QEMU},host_uso=off,guest_uso4=off,guest_uso6=off")
        .replace("mac=52:54:00:12:34:56 -qmp unix:q,server,nowait -incoming unix:in", "mac=52:54:00:12:34:56");
    let ours = from_qemu(&words(&without)).unwrap();
    assert!(line(&ours).ends_with(" --net tap=t0,mac=52:54:00:12:34:56,uso=off"), "{ours:?}");
    let theirs = to_qemu(&ours).unwrap();
    assert!(line(&theirs).contains(",mac=52:54:00:12:34:56,host_uso=off,guest_uso4=off,guest_uso6=off "), "{theirs:?}");
    let partly = from_qemu(&words(&without.replace("guest_uso6=off", "guest_uso6=on"))).unwrap_err();
    assert!(partly.len() == 1 && partly[0].contains("host_uso, guest_uso4, guest_uso6"), "{partly:?}");
}

#[test]
fn a_tap_with_vhost_is_one_in_both() {
    let with = |vhost: &str| QEMU.replace("downscript=no", &format!("downscript=no,vhost={vhost}"));
    let ours = from_qemu(&words(&with("on"))).unwrap();
    assert!(line(&ours).ends_with(" --net tap=t0,vhost=on,mac=52:54:00:12:34:56"), "{ours:?}");
    assert!(line(&to_qemu(&ours).unwrap()).contains(" tap,id=net0,ifname=t0,script=no,downscript=no,vhost=on "));
    assert_eq!(from_qemu(&words(&with("off"))).unwrap(), from_qemu(&words(QEMU)).unwrap());
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

/// The oracle is the shell, which reads each word back: all characters of ASCII but NUL, alone and next to quotes, and words
/// that would be a command, an option or nothing.
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
