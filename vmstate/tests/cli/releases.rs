//! docs/compatibility.md walks through five releases, and this test executes it: each device in it is a fixture here, each
//! command runs in a temporary project, in order. `BLESS=1` writes the commands' output into the page.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use vmstate::testing::Lock;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compatibility.md");
const FOLDER: &str = "tests/locks/uart";

/// A release: its source text, and the page's test of it.
struct Release {
    text: &'static str,
    lock: fn(Lock<'static>) -> Lock<'static>,
}

macro_rules! releases {
    ($($name:ident = $file:literal, busy: { $($busy:tt)* };)+) => {
        $(mod $name {
            include!(concat!("../fixtures/releases/", $file));

            pub(super) fn lock(lock: vmstate::testing::Lock<'static>) -> vmstate::testing::Lock<'static> {
                lock.state("reset", Uart::default).state("busy", || Uart { $($busy)* })
            }
        })+

        const RELEASES: &[Release] = &[$(Release {
            text: include_str!(concat!("../fixtures/releases/", $file)),
            lock: $name::lock,
        }),+];
    };
}

releases! {
    first = "1.rs", busy: { divider: 12, baud: 9600, ier: 5, lcr: 3 };
    careless = "2-careless.rs", busy: { divider: 12, baud: 9600, ier: 5, lcr: 3, fifo_control: 1 };
    second = "2.rs", busy: { divider: 12, baud: 9600, ier: 5, lcr: 3, fifo_control: 1 };
    third = "3.rs", busy: { divider: 12, baud: 9600, ier: 5, lcr: 3, fifo_control: 1, timeout_ns: 4_166_667 };
    fourth = "4.rs", busy: {
        divider: 12, _was_baud: Unused, control: Control { interrupts: 5, line: 3 }, fifo_control: 1,
        timeout_ns: 4_166_667
    };
    fifth = "5.rs", busy: {
        divider: 12, _was_baud: Unused, control: Control { interrupts: 5, line: 3 }, fifo_control: 1,
        timeout_ns: 4_166_667, sending: Some(b'x')
    };
}

/// A package with one test and one device, which changes from release to release.
struct Project {
    root: tempfile::TempDir,
    device: Option<&'static Release>,
}

impl Project {
    /// The output of a command of the page.
    fn run(&self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["cargo", "test"] => self.test(false),
            ["BLESS=1", "cargo", "test"] => self.test(true),
            ["rm", "-r", path] => {
                std::fs::remove_dir_all(self.root.path().join(path)).unwrap();
                String::new()
            }
            ["vmstate", arguments @ ..] => {
                let mut program = Command::new(env!("CARGO_BIN_EXE_vmstate"));
                let output = program.args(arguments).current_dir(self.root.path()).output().unwrap();
                let text = [output.stdout, output.stderr].concat();
                format!("{}exit code {}\n", String::from_utf8(text).unwrap(), output.status.code().unwrap())
            }
            _ => panic!("the page has a command that this test does not know: {command}"),
        }
    }

    /// Runs `cargo test` and returns only the message of the lock.
    fn test(&self, bless: bool) -> String {
        let device = self.device.expect("a device before the first command");
        let lock = (device.lock)(Lock::new(self.root.path().join(FOLDER))).bless(bless);
        match catch_unwind(AssertUnwindSafe(|| lock.check())) {
            Ok(()) => "ok\n".to_owned(),
            Err(panic) => {
                let message = panic.downcast_ref::<String>().unwrap();
                let message = message.replace(self.root.path().to_str().unwrap(), "");
                message.replace("the lock on /", "the lock on ").trim_end().to_owned() + "\n"
            }
        }
    }
}

#[test]
fn the_page_on_compatibility_shows_real_output() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut project = Project { root: tempfile::tempdir().unwrap(), device: None };
    let mut seen = vec![false; RELEASES.len()];
    let mut real = String::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        real.push_str(line);
        real.push('\n');
        if !line.starts_with("```") {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if line == "```console" {
            for command in block.iter().filter_map(|line| line.strip_prefix("$ ")) {
                real.push_str(&format!("$ {command}\n{}", project.run(command)));
            }
        } else {
            let text: String = block.iter().map(|line| format!("{line}\n")).collect();
            if let Some(index) = RELEASES.iter().position(|release| release.text == text) {
                project.device = Some(&RELEASES[index]);
                seen[index] = true;
            }
            real.push_str(&text);
        }
        real.push_str("```\n");
    }
    assert!(seen.iter().all(|seen| *seen), "a release in tests/fixtures/releases is not in the page: {seen:?}");
    if std::env::var_os("BLESS").is_some_and(|value| value == "1") {
        std::fs::write(PAGE, &real).unwrap();
    } else {
        assert_eq!(page, real, "run with BLESS=1 and read the difference");
    }
}
