//! Translates a command line of QEMU to one of minivmm.

use std::collections::BTreeMap;
use std::path::Path;

use super::options::{Options, escape};
use super::{Translation, USO};
use crate::cli::values;
use crate::config::Address;
use crate::control::channel;
use crate::passed;

/// QEMU's options without an argument that change nothing that the guest sees.
const IGNORED: &[&str] = &["no-user-config", "no-reboot", "only-migratable", "no-fd-bootchk", "mem-prealloc"];

/// QEMU's other options without an argument (qemu-options.hx), and why they have no match.
const SWITCHES: &[(&str, &str)] = &[
    ("S", "start the guest, and stop it with QMP's stop"),
    ("preconfig", "start the guest, and stop it with QMP's stop"),
    ("no-acpi", "minivmm's machine tells the guest of its devices by ACPI: leave it out"),
    ("no-shutdown", "minivmm ends with its guest"),
    ("daemonize", "minivmm stays in the foreground: let a supervisor start it"),
    ("snapshot", "minivmm writes to the image itself: give it a copy"),
    ("s", "minivmm has no debugger's port"),
    ("usb", "minivmm has no USB"),
    ("no-hpet", "microvm has no HPET"),
    ("full-screen", "minivmm has no display"),
    ("enable-sync-profile", "minivmm has nothing like it"),
    ("xen-attach", "minivmm runs guests with KVM only"),
    ("xen-domid-restrict", "minivmm runs guests with KVM only"),
];

#[derive(Default)]
struct Machine {
    words: Vec<String>,
    unmatched: Vec<String>,
    microvm: bool,
    second_ioapic_off: bool,
    kvm: bool,
    modern: bool,
    nographic: bool,
    nodefaults: bool,
    cpu: Option<String>,
    memory: Option<String>,
    /// Id of the `-object` that has the guest's memory.
    memory_backend: Option<String>,
    /// Options of each `-object memory-backend-memfd`, by its id.
    memfds: BTreeMap<String, Options>,
    serial: Option<String>,
    chardevs: BTreeMap<String, Options>,
    /// Options of each `-drive` and `-blockdev`, by its id or node name.
    drives: BTreeMap<String, Options>,
    netdevs: BTreeMap<String, Options>,
    devices: Vec<Options>,
}

/// Translates QEMU's `words`, the first of which is the program, to a command line of minivmm.
///
/// # Errors
/// One sentence for each part of the command line that has no match.
pub fn from_qemu(words: &[String]) -> Translation {
    let mut machine = Machine { words: vec!["minivmm".into(), "run".into()], ..Machine::default() };
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix('-') else {
            machine.no_match(word, "a disk image is given with -drive and -device virtio-blk-device");
            continue;
        };
        let option = option.strip_prefix('-').unwrap_or(option);
        match option {
            _ if IGNORED.contains(&option) => {}
            "enable-kvm" => machine.kvm = true,
            "nographic" => machine.nographic = true,
            "nodefaults" => machine.nodefaults = true,
            _ if let Some((_, why)) = SWITCHES.iter().find(|(name, _)| *name == option) => machine.no_match(word, why),
            _ => match words.next() {
                Some(value) => machine.option(option, value),
                None => machine.no_match(word, "minivmm has nothing like it"),
            },
        }
    }
    machine.finish()
}

impl Machine {
    fn no_match(&mut self, part: &str, why: &str) {
        self.unmatched.push(format!("{part}: {why}"));
    }

    fn flag(&mut self, name: &str, value: impl Into<String>) {
        self.words.extend([name.to_owned(), value.into()]);
    }

    fn option(&mut self, option: &str, value: &str) {
        match option {
            "M" | "machine" => self.machine(value),
            "accel" => self.accelerator(value.split(',').next().unwrap_or_default(), &format!("-accel {value}")),
            "global" if matches!(value, "virtio-mmio.force-legacy=false" | "virtio-mmio.force-legacy=off") => {
                self.modern = true;
            }
            "cpu" => self.cpu = Some(value.into()),
            "m" => self.memory = Some(value.into()),
            "smp" => self.cpus(value),
            "kernel" | "initrd" => self.flag(&format!("--{option}"), file(value)),
            "append" => self.flag("--append", value),
            "display" | "vga" | "monitor" | "parallel" if value == "none" => {}
            // These concern only the host, or a clock chip that `-M microvm,rtc=off` leaves out.
            "name" | "rtc" | "sandbox" | "trace" | "D" | "d" => {}
            "bios" => {
                self.no_match("-bios", "minivmm has no firmware, and takes the guest of QEMU's own: leave it out")
            }
            "object" if value.starts_with("memory-backend-memfd,") => {
                self.keep(value, "qom-type", "id", |machine| &mut machine.memfds);
            }
            "object" => {
                self.no_match(&format!("-object {value}"), "minivmm makes the guest's memory itself: leave it out")
            }
            "monitor" | "mon" => {
                self.no_match(&format!("-{option} {value}"), "minivmm has QMP only: -qmp unix:PATH,server=on,wait=off");
            }
            "serial" => match &self.serial {
                None => self.serial = Some(value.into()),
                Some(_) => self.no_match(&format!("-serial {value}"), "the machine has one serial port"),
            },
            "chardev" => self.keep(value, "backend", "id", |machine| &mut machine.chardevs),
            "drive" => self.keep(value, "file", "id", |machine| &mut machine.drives),
            "blockdev" => self.keep(value, "driver", "node-name", |machine| &mut machine.drives),
            "netdev" => self.keep(value, "type", "id", |machine| &mut machine.netdevs),
            "device" => self.devices.push(Options::parse(value, "driver")),
            "qmp" => self.qmp(value),
            "incoming" if value == "defer" || value.parse::<Address>().is_ok() || channel(value).is_ok() => {
                self.flag("--incoming", value);
            }
            _ => self.no_match(&format!("-{option} {value}"), "minivmm has nothing like it"),
        }
    }

    fn keep(&mut self, value: &str, first: &str, id: &str, of: impl Fn(&mut Self) -> &mut BTreeMap<String, Options>) {
        let mut options = Options::parse(value, first);
        let Some(id) = options.take(id) else {
            return self.no_match(
                value,
                &format!("no -device can use it: give it {id}=NAME, and a -device of microvm that name"),
            );
        };
        if of(self).insert(id.clone(), options).is_some() {
            self.no_match(value, &format!("{id} is there twice"));
        }
    }

    fn machine(&mut self, value: &str) {
        let mut options = Options::parse(value, "type");
        self.microvm = options.take("type").as_deref() == Some("microvm");
        self.second_ioapic_off = options.take("ioapic2").as_deref() == Some("off");
        if let Some(accel) = options.take("accel") {
            self.accelerator(&accel, &format!("accel={accel}"));
        }
        for (key, same) in
            [("acpi", "on"), ("pcie", "off"), ("rtc", "off"), ("pit", "on"), ("pic", "on"), ("isa-serial", "on")]
        {
            options.ignore(key, &[same, "auto"]);
        }
        self.memory_backend = options.take("memory-backend");
        // minivmm has no auxiliary memory that would have to be shared.
        options.ignore("aux-ram-share", &[]);
        options.ignore("usb", &["off"]);
        options.ignore("kernel-irqchip", &["on"]);
        for key in ["auto-kernel-cmdline", "x-option-roms", "mem-merge", "dump-guest-core"] {
            options.ignore(key, &[]);
        }
        for part in options.rest() {
            self.no_match(
                &format!("-M {part}"),
                "minivmm's machine is microvm with acpi=on,pcie=off,rtc=off,pit=on,pic=on,isa-serial=on",
            );
        }
    }

    /// Checks the first accelerator in the list `names`, whose separator is a colon; QEMU would try the next one if it lacked
    /// the first.
    fn accelerator(&mut self, names: &str, part: &str) {
        self.kvm |= names.split(':').next() == Some("kvm");
        if !self.kvm {
            self.no_match(part, "minivmm runs guests with KVM only");
        }
    }

    fn cpus(&mut self, value: &str) {
        let mut options = Options::parse(value, "cpus");
        let count = options.take("cpus").or_else(|| options.take("cores")).unwrap_or_else(|| "1".into());
        options.ignore("sockets", &["1"]);
        options.ignore("threads", &["1"]);
        options.ignore("cores", &[&count]);
        options.ignore("maxcpus", &[&count]);
        for part in options.rest() {
            self.no_match(&format!("-smp {part}"), "the machine is one package of cores with one thread each");
        }
        match values::cpus(&count) {
            Ok(count) => self.flag("--cpus", count.to_string()),
            Err(why) => self.no_match(&format!("-smp {count}"), &why),
        }
    }

    fn qmp(&mut self, value: &str) {
        let mut options = Options::parse(value, "address");
        options.ignore("wait", &["off"]);
        let (address, server) = (options.take("address").unwrap_or_default(), options.take("server"));
        match address.strip_prefix("unix:") {
            Some(path) if server.as_deref() == Some("on") && options.rest().next().is_none() => {
                self.flag("--control", format!("unix:{}", file(path)));
            }
            _ => self.no_match(&format!("-qmp {value}"), "minivmm has -qmp unix:PATH,server=on,wait=off"),
        }
    }

    fn finish(mut self) -> Translation {
        if !self.microvm {
            self.no_match("-M", "minivmm's machine is microvm");
        } else if !self.second_ioapic_off {
            self.no_match("-M microvm", "it may have a second I/O APIC, which minivmm has not: add ioapic2=off");
        }
        if !self.kvm {
            self.no_match("-accel", "QEMU emulates without it, and minivmm does not: add -accel kvm");
        }
        if !self.modern && !self.devices.is_empty() {
            let part = "-global virtio-mmio.force-legacy=false";
            self.no_match(part, "without it QEMU's devices are older than virtio 1, which minivmm's are not: add it");
        }
        self.finish_cpu();
        self.finish_memory();
        self.finish_serial();
        self.finish_devices();
        if self.unmatched.is_empty() { Ok(self.words) } else { Err(self.unmatched) }
    }

    fn finish_cpu(&mut self) {
        // QEMU's default.
        let cpu = self.cpu.take().unwrap_or_else(|| "qemu64".into());
        // minivmm always refuses a feature that the host lacks, and shows only features that can be migrated unless asked for
        // others.
        let same = ["enforce", "enforce=on", "check", "check=on", "migratable=on"];
        let parts: Vec<_> = cpu.split(',').filter(|part| !same.contains(part)).collect();
        let cpu = parts.join(",");
        match values::cpu(&cpu) {
            Ok(_) => self.flag("--cpu", cpu),
            Err(why) => self.no_match(&format!("-cpu {cpu}"), &why),
        }
    }

    fn finish_memory(&mut self) {
        let text = self.memory.take().unwrap_or_else(|| "128".into());
        let mut options = Options::parse(&text, "size");
        let size = options.take("size").unwrap_or_default();
        // Without a letter QEMU counts mebibytes.
        let size = if size.ends_with(|c: char| c.is_ascii_digit()) { format!("{size}M") } else { size };
        for part in options.rest() {
            self.no_match(&format!("-m {part}"), "memory is not added while the guest runs");
        }
        match values::memory(&size) {
            Ok(bytes) => {
                self.flag("--memory", size);
                self.finish_backend(bytes);
            }
            Err(why) => self.no_match(&format!("-m {text}"), &why),
        }
        for id in std::mem::take(&mut self.memfds).into_keys() {
            let why = format!("the machine does not use it: add memory-backend={id} to -M, or leave it out");
            self.no_match(&format!("-object memory-backend-memfd,id={id}"), &why);
        }
    }

    /// Memory of a descriptor, which QEMU's mode `cpr-transfer` passes to another process.
    fn finish_backend(&mut self, bytes: u64) {
        let Some(id) = self.memory_backend.take() else { return };
        let Some(mut memfd) = self.memfds.remove(&id) else {
            let why = "there is no -object memory-backend-memfd with this id, and minivmm has no other memory backend";
            return self.no_match(&format!("-M memory-backend={id}"), why);
        };
        let object = format!("-object memory-backend-memfd,id={id}");
        let size = memfd.take("size").unwrap_or_default();
        if values::memory(&size) != Ok(bytes) {
            self.no_match(&format!("{object},size={size}"), "give the size of -m");
        }
        // QEMU shares the memory of a memfd unless told otherwise.
        if memfd.switch("share").unwrap_or(true) {
            self.flag("--share-memory", "on");
        }
        memfd.ignore("qom-type", &[]);
        ["merge", "dump", "seal"].into_iter().for_each(|key| memfd.ignore(key, &[]));
        ["hugetlb", "prealloc"].into_iter().for_each(|key| memfd.ignore(key, &["off"]));
        for part in memfd.rest() {
            self.no_match(&format!("{object},{part}"), "minivmm has nothing like it");
        }
    }

    fn finish_serial(&mut self) {
        let default = match (self.nodefaults, self.nographic) {
            (true, _) => "none",
            (false, true) => "stdio",
            (false, false) => "null",
        };
        let serial = self.serial.take().unwrap_or_else(|| default.into());
        if serial == "none" {
            self.no_match(
                "-serial none",
                "QEMU's machine has no serial port then, and minivmm's has one: say -serial null",
            );
        }
        let matched = match serial.as_str() {
            "stdio" | "mon:stdio" => Some("stdio".into()),
            "none" | "null" => Some("none".into()),
            "pty" => Some("pty".into()),
            _ => match serial.split_once(':') {
                Some(("file", path)) => Some(format!("file:{}", escape(&file(path)))),
                Some(("chardev", id)) => self.chardevs.remove(id).and_then(chardev),
                _ => None,
            },
        };
        match matched {
            Some(place) => self.flag("--serial", place),
            None => self.no_match(&format!("-serial {serial}"), "minivmm has stdio, file:PATH, pty and none"),
        }
        for id in std::mem::take(&mut self.chardevs).into_keys() {
            self.no_match(&format!("-chardev id={id}"), "only the serial port has a chardev, and QMP is -qmp");
        }
    }

    fn finish_devices(&mut self) {
        let mut cards = false;
        for mut device in std::mem::take(&mut self.devices) {
            let driver = device.take("driver").unwrap_or_default();
            device.ignore("id", &[]);
            match driver.as_str() {
                "virtio-blk-device" if cards => {
                    self.no_match(
                        "-device virtio-blk-device",
                        "minivmm's disks come before its cards: give them in that order",
                    );
                }
                "virtio-blk-device" => self.disk(&mut device),
                "virtio-net-device" => {
                    cards = true;
                    self.card(&mut device);
                }
                _ => {
                    let why = match driver.as_str() {
                        "virtio-serial-device" | "virtconsole" | "virtserialport" => {
                            "minivmm's console is the serial port: console=ttyS0, -M microvm,isa-serial=on, -serial stdio"
                        }
                        _ if driver.ends_with("-pci") || driver.ends_with("-ccw") => {
                            "minivmm's devices are virtio-mmio's: virtio-blk-device and virtio-net-device"
                        }
                        _ => "minivmm has virtio-blk-device and virtio-net-device",
                    };
                    self.no_match(&format!("-device {driver}"), why);
                    continue;
                }
            }
            for part in device.rest() {
                self.no_match(&format!("-device {driver},{part}"), "minivmm has nothing like it");
            }
        }
        for id in std::mem::take(&mut self.drives).into_keys().chain(std::mem::take(&mut self.netdevs).into_keys()) {
            self.no_match(&format!("id={id}"), "no -device of the machine uses it");
        }
    }

    fn disk(&mut self, device: &mut Options) {
        let id = device.take("drive").unwrap_or_default();
        let Some(mut drive) = self.drives.remove(&id) else {
            return self
                .no_match(&format!("-device virtio-blk-device,drive={id}"), "there is no such -drive or -blockdev");
        };
        let format = drive.take("format").or_else(|| drive.take("driver"));
        let path = drive.take("file.filename").or_else(|| drive.take("filename")).or_else(|| {
            // A format node may name a file node.
            let file = drive.take("file")?;
            match self.drives.remove(&file) {
                Some(mut node) => node.take("filename"),
                None => Some(file),
            }
        });
        let read_only = drive.take("readonly").or_else(|| drive.take("read-only")).as_deref() == Some("on");
        drive.ignore("if", &["none"]);
        drive.ignore("file.driver", &["file", "host_device"]);
        ["cache", "aio", "discard", "detect-zeroes"].into_iter().for_each(|key| drive.ignore(key, &[]));
        if !matches!(format.as_deref(), Some("raw" | "file" | "host_device")) {
            self.no_match(&format!("drive {id}"), "minivmm has raw images only: say format=raw if it is one");
        }
        for part in drive.rest() {
            self.no_match(&format!("drive {id}: {part}"), "minivmm has nothing like it");
        }
        match path {
            Some(path) => {
                self.flag("--disk", format!("{}{}", escape(&file(&path)), if read_only { ",readonly" } else { "" }))
            }
            None => self.no_match(&format!("drive {id}"), "it has no file"),
        }
    }

    fn card(&mut self, device: &mut Options) {
        let id = device.take("netdev").unwrap_or_default();
        let mac = device.take("mac").map(|mac| format!(",mac={mac}")).unwrap_or_default();
        let uso = match USO.map(|property| device.switch(property).unwrap_or(true)) {
            [true, true, true] => "",
            [false, false, false] => ",uso=off",
            _ => {
                self.no_match(&format!("card {id}"), &format!("switch {} off or on together", USO.join(", ")));
                ""
            }
        };
        let Some(mut netdev) = self.netdevs.remove(&id) else {
            return self
                .no_match(&format!("-device virtio-net-device,netdev={id}"), "there is no such -netdev tap or stream");
        };
        let kind = netdev.take("type").unwrap_or_default();
        let network = match network(&kind, &mut netdev) {
            Ok(network) => network,
            Err(why) => return self.no_match(&format!("-netdev {kind}"), why),
        };
        for part in netdev.rest() {
            self.no_match(&format!("-netdev {kind},{part}"), "minivmm has nothing like it");
        }
        let value = format!("{network}{mac}{uso}");
        match values::net(&value) {
            Ok(_) => self.flag("--net", value),
            Err(why) => self.no_match(&format!("card {id}"), &why),
        }
    }
}

/// Prefixes `./` to a file's name that minivmm would read as a passed descriptor, `fd:…`.
fn file(path: &str) -> String {
    let taken = passed::reference(Path::new(path)).is_some();
    format!("{}{path}", if taken { "./" } else { "" })
}

/// Value of `--net` for a `-netdev` of this kind, or why there is no match.
fn network(kind: &str, netdev: &mut Options) -> Result<String, &'static str> {
    match kind {
        "tap" => {
            netdev.ignore("script", &["no"]);
            netdev.ignore("downscript", &["no"]);
            netdev.ignore("vnet_hdr", &["on"]);
            let name =
                netdev.take("ifname").ok_or("QEMU chooses a name or is passed a descriptor: give ifname=NAME")?;
            let vhost = if netdev.switch("vhost") == Some(true) { ",vhost=on" } else { "" };
            Ok(format!("tap={}{vhost}", escape(&name)))
        }
        "stream" => {
            netdev.ignore("server", &["off"]);
            netdev.ignore("addr.type", &["unix"]);
            // minivmm always reconnects, after a second.
            netdev.ignore("reconnect", &[]);
            netdev.ignore("reconnect-ms", &[]);
            let path = netdev
                .take("addr.path")
                .ok_or("minivmm connects to a unix socket: give addr.type=unix,addr.path=PATH")?;
            Ok(format!("stream={}", escape(&file(&path))))
        }
        "passt" => Err(
            "start it yourself, passt --socket PATH, and give -netdev stream,server=off,addr.type=unix,addr.path=PATH",
        ),
        "bridge" => Err(
            "minivmm has no bridge: give -netdev tap,ifname=NAME,script=no,downscript=no, which you make a port of it",
        ),
        _ => Err("minivmm has -netdev tap,ifname=NAME,script=no,downscript=no, and passt, which needs no right: \
                  -netdev stream,server=off,addr.type=unix,addr.path=PATH"),
    }
}

fn chardev(mut options: Options) -> Option<String> {
    let backend = options.take("backend")?;
    options.ignore("signal", &[]);
    options.ignore("mux", &[]);
    let path = options.take("path");
    match (backend.as_str(), path, options.rest().next()) {
        ("stdio", None, None) => Some("stdio".into()),
        ("pty", None, None) => Some("pty".into()),
        ("null", None, None) => Some("none".into()),
        ("file", Some(path), None) => Some(format!("file:{}", escape(&file(&path)))),
        _ => None,
    }
}
