//! The files of an initrd, collected before they are written: host files under their own or another path.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Writer;
use crate::error::{Error, FileContext, Result};

#[derive(Debug)]
enum Entry {
    Directory,
    Host(PathBuf),
    Bytes(Vec<u8>),
    Program(Vec<u8>),
    Link(String),
}

/// A file tree; parent directories are added with each entry.
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, path: impl AsRef<Path>) {
        self.add(path.as_ref(), Entry::Directory);
    }

    /// Adds a file of the host; links are followed.
    pub fn host(&mut self, path: impl AsRef<Path>, source: impl Into<PathBuf>) {
        self.add(path.as_ref(), Entry::Host(source.into()));
    }

    /// Adds a file with this content.
    pub fn bytes(&mut self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>) {
        self.add(path.as_ref(), Entry::Bytes(content.into()));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<String>) {
        self.add(path.as_ref(), Entry::Link(target.into()));
    }

    /// Adds an executable of the host as `path`, and the loader and shared libraries it needs under their own paths.
    ///
    /// # Errors
    /// When the executable cannot be read, or its loader does not find a library.
    pub fn program(&mut self, path: impl AsRef<Path>, source: &Path) -> Result<()> {
        for library in libraries(source)? {
            self.host(&library, &library);
        }
        match without_symbols(source) {
            Some(stripped) => self.add(path.as_ref(), Entry::Program(stripped)),
            None => self.host(path, source),
        }
        Ok(())
    }

    /// Writes the tree as an uncompressed initrd.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, initrd: &Path) -> Result<()> {
        let out = BufWriter::with_capacity(1 << 20, File::create(initrd).doing("create", initrd)?);
        let mut archive = Writer::new(out);
        for (path, entry) in &self.0 {
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
            match entry {
                Entry::Directory => archive.directory(&name).doing("write", initrd)?,
                Entry::Link(target) => archive.symlink(&name, target).doing("write", initrd)?,
                Entry::Bytes(bytes) | Entry::Program(bytes) => {
                    let executable = matches!(entry, Entry::Program(_));
                    archive.file(&name, executable, bytes.len() as u64, &bytes[..]).doing("write", initrd)?;
                }
                Entry::Host(source) => {
                    let file = File::open(source).doing("open", source)?;
                    let meta = file.metadata().doing("read", source)?;
                    let executable = meta.permissions().mode() & 0o100 != 0;
                    archive.file(&name, executable, meta.len(), file).doing("copy", source)?;
                }
            }
        }
        archive.finish().doing("write", initrd)?;
        Ok(())
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        for parent in path.ancestors().skip(1).filter(|parent| parent.file_name().is_some()) {
            self.0.entry(parent.to_owned()).or_insert(Entry::Directory);
        }
        self.0.insert(path.to_owned(), entry);
    }
}

/// The loader and the shared libraries of an executable, as its own loader lists them; none when it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let Some(loader) = loader(program)? else { return Ok(Vec::new()) };
    let listing = Command::new(&loader).arg("--list").arg(program).output().doing("run", &loader)?;
    let text = String::from_utf8_lossy(&listing.stdout);
    if !listing.status.success() || text.contains("not found") {
        let reason = String::from_utf8_lossy(&listing.stderr);
        let sentence = format!("{}: its libraries cannot be found: {text}{reason}", program.display());
        return Err(Error::failed(sentence));
    }
    // A line is "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", or for the loader itself
    // "/lib64/ld-linux-x86-64.so.2 (0x…)".
    let paths = text.lines().filter_map(|line| line.split_whitespace().rfind(|word| word.starts_with('/')));
    let mut all: Vec<PathBuf> = paths.map(PathBuf::from).collect();
    all.push(loader);
    Ok(all)
}

/// The program without symbols, which are most of its size and slow an emulated machine down; `None` where there is no
/// `strip`.
fn without_symbols(program: &Path) -> Option<Vec<u8>> {
    let scratch = tempfile::NamedTempFile::new().ok()?;
    let stripped = Command::new(find_program("strip")?).arg("-o").arg(scratch.path()).arg(program).output().ok()?;
    if stripped.status.success() { fs::read(scratch.path()).ok() } else { None }
}

/// The program interpreter of an ELF file (PT_INTERP, System V ABI).
fn loader(program: &Path) -> Result<Option<PathBuf>> {
    const PT_INTERP: u64 = 3;
    let mut bytes = Vec::new();
    let file = File::open(program).doing("open", program)?;
    file.take(64 << 10).read_to_end(&mut bytes).doing("read", program)?;
    let number = |offset: usize, size: usize| -> Option<u64> {
        let field = bytes.get(offset..offset.checked_add(size)?)?;
        Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let find = || -> Option<Option<PathBuf>> {
        if bytes.get(..5)? != b"\x7fELF\x02" {
            return None;
        }
        let (table, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
        for index in 0..count {
            let header = table.checked_add(size * index)?;
            if number(header, 4)? == PT_INTERP {
                let (offset, length) = (number(header + 8, 8)? as usize, number(header + 32, 8)? as usize);
                let path = bytes.get(offset..offset.checked_add(length)?)?.strip_suffix(b"\0")?;
                return Some(Some(PathBuf::from(String::from_utf8(path.to_vec()).ok()?)));
            }
        }
        Some(None)
    };
    find().ok_or_else(|| Error::failed(format!("{}: not a 64-bit ELF executable", program.display())))
}

/// Finds a program in PATH and in the directories of system programs, which a user's PATH often lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let candidates = std::env::split_paths(&path).chain(system).map(|directory| directory.join(name));
    candidates.into_iter().find(|file| fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_brings_its_loader_and_c_library() {
        let own = std::env::current_exe().unwrap();
        let mut tree = Tree::new();
        tree.program("/init", &own).unwrap();
        let paths: Vec<String> = tree.0.keys().map(|path| path.display().to_string()).collect();
        assert!(paths.iter().any(|path| path.contains("/libc.so")), "{paths:?}");
        assert!(paths.iter().any(|path| path.contains("/ld-linux")), "{paths:?}");
        assert!(paths.contains(&"/init".to_owned()));
    }

    #[test]
    fn parents_come_before_children_and_a_script_is_refused() {
        let mut tree = Tree::new();
        tree.bytes("/a/b/c", "x");
        let paths: Vec<_> = tree.0.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c"]);
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), "#!/bin/sh\n").unwrap();
        assert!(tree.program("/s", script.path()).unwrap_err().to_string().contains("not a 64-bit ELF"));
    }
}
