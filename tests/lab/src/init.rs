//! The first process of the emulated host (L1): runs one job and reports its exit code to the runner outside.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::Value;

use crate::cpio::Writer;
use crate::error::{Error, FileContext, Result};
use crate::kernel::HOST_MODULES;
use crate::{netlink, pid1};

/// Argument after which the executable acts as L1's first process.
pub const ROLE: &str = "lab-init";
/// Printed on the console once the host waits for its job.
pub(crate) const READY: &str = "lab: ready";
/// The port on which the job comes, as a line of JSON with `argv`, `env` and `seconds`, and to which its output goes.
const PORT: &str = "/dev/ttyS1";
/// The runner collects every file in this directory.
pub const OUT: &str = "/out";
/// Start of the closing line on the console, which ends with the job's exit code.
pub(crate) const CLOSING: &str = "lab: job ended with";
/// Exit code of a job that exceeded its time limit.
pub(crate) const TIMED_OUT: i32 = 124;

/// Runs the job, never returns.
pub(crate) fn main() -> ! {
    pid1::mount_all();
    pid1::leave_rootfs();
    pid1::load_modules(HOST_MODULES);
    if let Err(error) = netlink::up("lo") {
        println!("lo: {error}");
    }
    let code = run().unwrap_or_else(|error| {
        println!("lab: {error}");
        125
    });
    if let Err(error) = hand_out() {
        println!("lab: artifacts: {error}");
    }
    println!("{CLOSING} {code}");
    pid1::power_off()
}

fn run() -> Result<i32> {
    let path = Path::new(PORT);
    let port = OpenOptions::new().read(true).write(true).open(path).doing("open", path)?;
    let mut settings = tcgetattr(port.as_fd()).doing("set up", path)?;
    cfmakeraw(&mut settings);
    tcsetattr(port.as_fd(), SetArg::TCSANOW, &settings).doing("set up", path)?;
    println!("{READY}");
    let mut job = String::new();
    BufReader::new(&port).read_line(&mut job).doing("read", path)?;
    let job: Value = serde_json::from_str(&job).map_err(|error| Error::failed(format!("{PORT}: {error}")))?;
    let words = |key: &str| job[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    let (argv, environment) = (words("argv"), words("env"));
    let (program, arguments) = argv.split_first().ok_or_else(|| Error::failed(format!("{PORT}: no program")))?;

    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().filter_map(|variable| variable.split_once('=')))
        .stdin(Stdio::null())
        .stdout(port.try_clone().doing("share", path)?)
        .stderr(port)
        .spawn()
        .doing("start", Path::new(program))?;
    let deadline = Instant::now() + Duration::from_secs(job["seconds"].as_u64().unwrap_or(60));
    loop {
        if let Some(status) = child.try_wait().doing("wait for", Path::new(program))? {
            return Ok(status.code().unwrap_or(TIMED_OUT + 1));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            return Ok(TIMED_OUT);
        }
        std::thread::sleep(Duration::from_millis(100));
        // The runner treats a long silence of the console as a hang of the whole machine.
        print!(".");
        let _ = std::io::stdout().flush();
    }
}

/// Writes the files in [`OUT`] as an archive onto the first disk.
fn hand_out() -> Result<()> {
    let disk = Path::new("/dev/vda");
    let out = OpenOptions::new().write(true).open(disk).doing("open", disk)?;
    let mut archive = Writer::new(BufWriter::with_capacity(1 << 20, out));
    for entry in fs::read_dir(OUT).doing("list", Path::new(OUT))?.flatten() {
        let path = entry.path();
        let file = File::open(&path).doing("open", &path)?;
        let size = file.metadata().doing("read", &path)?.len();
        archive.file(&entry.file_name().to_string_lossy(), false, size, file).doing("copy", &path)?;
    }
    archive.finish().doing("write", disk)?;
    Ok(())
}
