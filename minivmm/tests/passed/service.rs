//! The parts of systemd that start a service: opens the unit's files and sockets and passes them to an unprivileged process.
//!
//! systemd.service(5), systemd.socket(5), sd_listen_fds(3): sockets from 3 on, then the files of OpenFile=, each with its name.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The user `nobody`, who owns no file.
pub(crate) const NOBODY: &str = "65534";

/// Assignments of a unit file and its drop-ins, in order.
pub(crate) struct Unit(Vec<(String, String)>);

impl Unit {
    /// Reads a file of docs/systemd.
    pub(crate) fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/systemd").join(name);
        let text = fs::read_to_string(path).unwrap().replace("\\\n", " ");
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
        let assignment = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self(lines.map(|line| assignment(line).unwrap_or_else(|| panic!("{name}: {line}"))).collect())
    }

    pub(crate) fn with(mut self, drop_in: &str) -> Self {
        self.0.extend(Self::read(drop_in).0);
        self
    }

    /// Returns all values of a list, which an empty assignment clears.
    pub(crate) fn values(&self, key: &str) -> Vec<&str> {
        let mut values = Vec::new();
        for (_, value) in self.0.iter().filter(|(other, _)| other == key) {
            match value.as_str() {
                "" => values.clear(),
                value => values.push(value),
            }
        }
        values
    }

    /// Returns the last value.
    pub(crate) fn value(&self, key: &str) -> &str {
        self.0.iter().rfind(|(other, _)| other == key).unwrap_or_else(|| panic!("no {key}")).1.as_str()
    }

    /// Returns the words of ExecStart=.
    pub(crate) fn command(&self) -> Vec<String> {
        let [line] = self.values("ExecStart")[..] else { panic!("one command") };
        let mut words = Vec::new();
        // Every other piece was quoted.
        for (index, piece) in line.split('"').enumerate() {
            match index % 2 {
                0 => words.extend(piece.split_whitespace().map(str::to_owned)),
                _ => words.push(piece.to_owned()),
            }
        }
        words
    }
}

/// Maps a path of the units to a file of the same name in `folder`.
pub(crate) fn here(folder: &Path, path: &str) -> PathBuf {
    match path {
        "/dev/kvm" => path.into(),
        _ => folder.join(Path::new(path).file_name().unwrap()),
    }
}

/// Makes the command of `unit`: `sockets` are those of Sockets=, in order, at most two. `append` replaces the unit's value of
/// `--append`.
pub(crate) fn command(unit: &Unit, folder: &Path, sockets: Vec<OwnedFd>, append: &str) -> Command {
    let mut names: Vec<String> = unit.values("Sockets").iter().map(|name| socket_name(name)).collect();
    assert_eq!(names.len(), sockets.len());
    let mut files = Vec::new();
    for file in unit.values("OpenFile") {
        let mut parts = file.split(':');
        let (path, name, option) = (parts.next().unwrap(), parts.next().unwrap(), parts.next());
        let how = match option {
            None => "<>",
            Some("read-only") => "<",
            Some("append") => ">>",
            other => panic!("{other:?}"),
        };
        files.push(format!("{how}'{}'", here(folder, path).display()));
        names.push(name.to_owned());
    }
    let mut words = unit.command();
    assert_eq!(words.remove(0), "/usr/local/bin/minivmm");
    assert_eq!(words.remove(0), "run");
    if let Some(at) = words.iter().position(|word| word == "--append") {
        words[at + 1] = append.to_owned();
    }
    let variables = format!("LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}", names.len(), names.join(":"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    started(folder, &variables, sockets, &files, &words)
}

/// Starts minivmm with `passed` (at most two) from descriptor 3 on, and then the files that a shell opens by `files`: in an
/// empty folder and, where the test may, as `nobody` without capabilities.
pub(crate) fn started(
    folder: &Path,
    variables: &str,
    passed: Vec<OwnedFd>,
    files: &[String],
    arguments: &[&str],
) -> Command {
    fs::set_permissions(folder, Permissions::from_mode(0o711)).unwrap();
    let program = folder.join("minivmm");
    if !program.exists() {
        // Copied by a process of its own: a process that another test starts meanwhile could hold the file open for writing,
        // and the kernel does not execute such a file (ETXTBSY, execve(2)).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_minivmm")).arg(&program).status().unwrap();
        assert!(copied.success());
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    let empty = folder.join("empty");
    fs::create_dir_all(&empty).unwrap();

    // A shell passes its own standard input and output on. So no descriptor of the test has to be inheritable, which other
    // processes started meanwhile would inherit, too.
    let passed_on = ["<&0", "<&1"][..passed.len()].iter().map(|&how| how.to_owned());
    let redirections = (3..).zip(passed_on.chain(files.iter().cloned()));
    let redirections: Vec<String> = redirections.map(|(number, how)| format!("{number}{how}")).collect();
    assert!(redirections.len() <= 7, "a POSIX shell redirects descriptors below 10");
    let drop_rights = match nix::unistd::geteuid().is_root() {
        true => format!(
            "setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
        ),
        false => String::new(),
    };
    let script = format!(
        "export {variables}; exec {drop_rights} \"$0\" \"$@\" {} 0</dev/null 1>/dev/null",
        redirections.join(" ")
    );
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(program).arg("run").args(arguments).current_dir(empty).stderr(Stdio::piped());
    let mut passed = passed.into_iter().map(Stdio::from);
    command.stdin(passed.next().unwrap_or_else(Stdio::null));
    command.stdout(passed.next().unwrap_or_else(Stdio::null));
    command
}

/// FileDescriptorName= of a socket unit.
fn socket_name(unit: &str) -> String {
    Unit::read(unit).value("FileDescriptorName").to_owned()
}
