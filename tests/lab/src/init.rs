//! The first process of the emulated host (L1): runs one job and tells the runner outside how it ended.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
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
/// The job, as JSON: `argv`, `env`, `seconds`.
pub(crate) const JOB: &str = "/job.json";
/// The runner takes every file that lies here.
pub const OUT: &str = "/out";
/// Begins the closing line on the console, which ends in the job's exit code.
pub(crate) const CLOSING: &str = "lab: job ended with";
/// Exit code of a job that its own deadline ended.
pub(crate) const TIMED_OUT: i32 = 124;

/// Runs the job, never returns.
pub(crate) fn main() -> ! {
    pid1::mount_all();
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
    let job = fs::read_to_string(JOB).doing("read", Path::new(JOB))?;
    let job: Value = serde_json::from_str(&job).map_err(|error| Error::failed(format!("{JOB}: {error}")))?;
    let words = |key: &str| job[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    let (argv, environment) = (words("argv"), words("env"));
    let (program, arguments) = argv.split_first().ok_or_else(|| Error::failed(format!("{JOB}: no program")))?;

    let path = Path::new("/dev/ttyS1");
    let port = OpenOptions::new().read(true).write(true).open(path).doing("open", path)?;
    let mut settings = tcgetattr(port.as_fd()).doing("set up", path)?;
    cfmakeraw(&mut settings);
    tcsetattr(port.as_fd(), SetArg::TCSANOW, &settings).doing("set up", path)?;

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
        // The runner takes a long silence of the console for a hang of the whole machine.
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
