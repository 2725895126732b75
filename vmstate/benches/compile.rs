//! Cost of compiling 50 devices of 12 fields: with `VmState`, and with serde's derive and bincode.
//!
//! `cargo bench -p vmstate --bench compile [-- REPEATS]` writes a crate for each, builds their dependencies, and then builds each
//! crate alone, in turns: the CPU time, in user mode, of `cargo check`, `cargo build` and `cargo build --release`, and the size
//! of the program. Both programs save and load every device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

const DEVICES: usize = 50;

fn main() {
    // Cargo adds `--bench`.
    let repeats = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let repeats: usize = repeats.map_or(5, |repeats| repeats.parse().expect("REPEATS is a number"));

    let crates = [vmstate(), serde()];
    println!("CPU seconds of the crate of {DEVICES} devices, best of {repeats}; ratio to serde's");
    for command in [&["check"][..], &["build"], &["build", "--release"]] {
        // Build the dependencies.
        crates.iter().for_each(|measured| _ = measured.cargo(command));
        let mut best = [Duration::MAX; 2];
        for _ in 0..repeats {
            for (measured, best) in crates.iter().zip(&mut best) {
                measured.touch();
                *best = measured.cargo(command).min(*best);
            }
        }
        for (measured, time) in crates.iter().zip(best) {
            let ratio = time.as_secs_f64() / best[1].as_secs_f64();
            println!("{:16} {:8} {:8.2} {ratio:8.2}", command.join(" "), measured.name, time.as_secs_f64());
        }
    }
    for measured in &crates {
        println!("{:16} {:8} {:8} bytes", "program", measured.name, measured.size());
    }
}

/// A crate that was written for the measurement.
struct Crate {
    name: &'static str,
    dir: PathBuf,
}

fn vmstate() -> Crate {
    let dependencies = format!("vmstate = {{ path = {:?}, default-features = false }}", env!("CARGO_MANIFEST_DIR"));
    let devices = devices(|index| {
        let device = format!(
            "#[derive(VmState, Default)]\n\
             #[vmstate(name = \"device{index}\", version = 2, minimum_version = 1)]\n\
             #[vmstate(subsection(name = \"device{index}/pending\", needed = Self::is_pending))]"
        );
        let queue = format!("#[derive(VmState, Default)]\n#[vmstate(name = \"queue{index}\")]");
        let attributes = [
            ("since", "#[vmstate(since = 2)]"),
            ("buffer", "#[vmstate(buffer)]"),
            ("len", "#[vmstate(len = count, max = 64)]"),
            ("subsection", &format!("#[vmstate(subsection = \"device{index}/pending\")]")),
        ];
        (device, queue, attributes.map(|(word, attribute)| (word, attribute.to_owned())).to_vec())
    });
    let sections = each(|index| format!("        Box::new(Device{index}::default()),\n"));
    let program = format!(
        "use vmstate::codec::{{Reader, Writer}};\n\
         use vmstate::{{Section, VmState}};\n\n\
         {devices}\
         fn main() {{\n    let mut devices: Vec<Box<dyn Section>> = vec![\n{sections}    ];\n    \
             for device in &mut devices {{\n        \
                 let mut out = Writer::new();\n        \
                 device.save(&mut out).unwrap();\n        \
                 let version = device.description().version;\n        \
                 device.load(&mut Reader::strict(out.as_slice()), version).unwrap();\n    \
             }}\n\
         }}\n"
    );
    Crate::new("vmstate", &dependencies, &program)
}

fn serde() -> Crate {
    let dependencies = "serde = { version = \"1\", features = [\"derive\"] }\n\
                        bincode = { version = \"2\", default-features = false, features = [\"std\", \"serde\"] }";
    let derive = "#[derive(Serialize, Deserialize, Default)]";
    let devices = devices(|_| (derive.to_owned(), derive.to_owned(), Vec::new()));
    let calls = each(|index| format!("    both(&mut Device{index}::default());\n"));
    let program = format!(
        "use serde::de::DeserializeOwned;\n\
         use serde::{{Deserialize, Serialize}};\n\n\
         {devices}\
         fn both<T: Serialize + DeserializeOwned>(device: &mut T) {{\n    \
             let config = bincode::config::standard().with_big_endian().with_fixed_int_encoding();\n    \
             let bytes = bincode::serde::encode_to_vec(&*device, config).unwrap();\n    \
             *device = bincode::serde::decode_from_slice(&bytes, config).unwrap().0;\n\
         }}\n\n\
         fn main() {{\n{calls}}}\n"
    );
    Crate::new("serde", dependencies, &program)
}

/// The attributes before a device, before its queue, and before named fields.
type Attributes = (String, String, Vec<(&'static str, String)>);

/// The source of all devices, each with a nested struct of its own.
fn devices(attributes: impl Fn(usize) -> Attributes) -> String {
    each(|index| {
        let (device, queue, words) = attributes(index);
        let attribute = |word| {
            let found = words.iter().find(|(known, _)| *known == word);
            found.map_or(String::new(), |(_, attribute)| format!("    {attribute}\n"))
        };
        let (since, buffer, len, subsection) =
            (attribute("since"), attribute("buffer"), attribute("len"), attribute("subsection"));
        let registers = 4 + index % 5;
        format!(
            "{queue}\nstruct Queue{index} {{\n    \
                 size: u16,\n    \
                 ready: bool,\n    \
                 address: u64,\n    \
                 next: u16,\n\
             }}\n\n\
             {device}\nstruct Device{index} {{\n    \
                 control: u32,\n    \
                 status: u16,\n    \
                 enabled: bool,\n    \
                 level: i32,\n\
             {since}    address: u64,\n    \
                 line: u8,\n    \
                 registers: [u32; {registers}],\n\
             {buffer}    identity: [u8; 16],\n    \
                 queue: Queue{index},\n    \
                 count: u16,\n\
             {len}    requests: Vec<u64>,\n\
             {subsection}    pending: u32,\n\
             }}\n\n\
             impl Device{index} {{\n    \
                 #[allow(dead_code)]\n    \
                 fn is_pending(&self) -> bool {{\n        \
                     self.pending != 0\n    \
                 }}\n\
             }}\n\n"
        )
    })
}

fn each(text: impl Fn(usize) -> String) -> String {
    (0..DEVICES).map(text).collect()
}

impl Crate {
    fn new(name: &'static str, dependencies: &str, program: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile").join(name);
        fs::create_dir_all(dir.join("src")).expect("a directory");
        let manifest = format!(
            "[package]\nname = \"{name}-devices\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [dependencies]\n{dependencies}\n\n[profile.release]\nstrip = true\n\n[workspace]\n"
        );
        fs::write(dir.join("Cargo.toml"), manifest).expect("a manifest");
        // The dependencies' versions of the workspace.
        fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"), dir.join("Cargo.lock")).expect("a lock file");
        fs::write(dir.join("src/main.rs"), program).expect("a program");
        Self { name, dir }
    }

    /// Makes cargo compile the crate again.
    fn touch(&self) {
        let program = fs::File::options().append(true).open(self.dir.join("src/main.rs")).expect("the program");
        program.set_modified(std::time::SystemTime::now()).expect("a time");
    }

    /// The CPU time of cargo and its child processes.
    fn cargo(&self, arguments: &[&str]) -> Duration {
        let before = cpu_time_of_children();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(arguments).args(["--quiet", "--offline"]).current_dir(&self.dir).env("CARGO_INCREMENTAL", "0");
        assert!(cargo.status().expect("cargo").success(), "{cargo:?}");
        cpu_time_of_children() - before
    }

    /// Size of the optimised program without symbols, in bytes.
    fn size(&self) -> u64 {
        let program = self.dir.join("target/release").join(format!("{}-devices", self.name));
        fs::metadata(program).expect("the program").len()
    }
}

fn cpu_time_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage");
    Duration::from_micros(usage.user_time().num_microseconds().try_into().expect("a time"))
}
