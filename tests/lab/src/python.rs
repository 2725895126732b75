//! Python, and QEMU's public QMP client for it: `qemu.qmp` of PyPI, with its `qmp-shell`.

use std::path::PathBuf;
use std::process::Command;

use crate::apt;
use crate::error::{Error, Result};
use crate::packages::{cache, tool};
use crate::process::run;

/// The client's release, as a requirement for pip: pure Python, without dependencies.
const CLIENT: &str = "qemu.qmp==0.0.6";

/// A Python that imports the system's packages and `qemu.qmp`.
#[derive(Debug)]
pub struct Python {
    program: PathBuf,
    packages: PathBuf,
}

impl Python {
    /// Finds Python, and the client in the cache or on PyPI; Python and pip are installed where they are missing and
    /// the user is root.
    ///
    /// # Errors
    /// A sentence with what is missing and the command that brings it.
    pub fn with_qmp_client() -> Result<Self> {
        let program = tool("python3", "python3")?;
        let packages = cache()?.join(CLIENT.replace("==", "-"));
        let python = Self { program, packages };
        if !python.packages.join("qemu/qmp/qmp_shell.py").is_file() {
            python.install_client()?;
        }
        Ok(python)
    }

    /// A command that runs the interpreter.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PYTHONPATH", &self.packages).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    fn install_client(&self) -> Result<()> {
        let pip = || {
            let mut command = Command::new(&self.program);
            command.args(["-m", "pip", "--disable-pip-version-check"]);
            command
        };
        if run(pip().arg("--version")).is_err() {
            if !apt::may_install() {
                return Err(Error::missing("pip", "install it with `sudo apt-get install python3-pip`"));
            }
            apt::install("python3-pip")?;
        }
        eprintln!("lab: installing {CLIENT} into {}", self.packages.display());
        // Install into a directory with another name first: an interrupted installation must not look complete.
        let unfinished = self.packages.with_extension(format!("part-{}", std::process::id()));
        let install = ["install", "--quiet", "--no-deps", "--root-user-action=ignore", "--target"];
        run(pip().args(install).arg(&unfinished).arg(CLIENT))?;
        // Another process may have installed it meanwhile.
        let moved = std::fs::rename(&unfinished, &self.packages);
        if moved.is_err() {
            let _ = std::fs::remove_dir_all(&unfinished);
        }
        match self.packages.is_dir() {
            true => Ok(()),
            false => Err(Error::failed(format!("{CLIENT} could not be put into {}", self.packages.display()))),
        }
    }
}
