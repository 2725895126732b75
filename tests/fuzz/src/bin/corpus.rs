//! Converts the kept inputs to files for the driver, and back. `corpus unpack FOLDER` makes `TARGET/begin` with the
//! seeds and finds of each target and `TARGET/archived` with its archive, and prints the targets' names. `corpus pack
//! TARGET FROM LESS` rebuilds the target's archive from the files in FROM without those in LESS.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

// Defines the functions that instrumented code calls.
#[cfg(feature = "libfuzzer")]
use libfuzzer_sys as _;
use vmstate_fuzz::{TARGETS, corpus};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["unpack", folder] => unpack(Path::new(folder)),
        ["pack", target, from, less] => pack(target, Path::new(from), Path::new(less)),
        _ => Err(io::Error::other("usage: corpus unpack FOLDER | corpus pack TARGET FROM LESS")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corpus: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unpack(folder: &Path) -> io::Result<()> {
    for target in TARGETS {
        let finds = corpus::finds(target.name)?.into_iter().map(|(_, input)| input);
        write(&folder.join(target.name).join("begin"), target.seeds().into_iter().chain(finds))?;
        let archived = corpus::archived(target.name)?.into_iter().map(|(_, input)| input);
        write(&folder.join(target.name).join("archived"), archived)?;
        println!("{}", target.name);
    }
    Ok(())
}

fn write(folder: &Path, inputs: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    inputs.enumerate().try_for_each(|(index, input)| fs::write(folder.join(index.to_string()), input))
}

fn pack(target: &str, from: &Path, less: &Path) -> io::Result<()> {
    let less: BTreeSet<Vec<u8>> = corpus::files(less)?.into_iter().map(|(_, input)| input).collect();
    let inputs = corpus::files(from)?.into_iter().map(|(_, input)| input).filter(|input| !less.contains(input));
    fs::write(corpus::archive(target), corpus::encode(inputs)?)
}
