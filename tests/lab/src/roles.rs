//! The parts one executable plays: first process of the emulated host or of a guest, and launcher of child processes.
//!
//! A first process mounts over the machine's directories and powers the machine off in the end. So it refuses to begin
//! anywhere but in a machine that the kernel has just started from an initrd.

use std::path::Path;
use std::process::ExitCode;

use crate::{guest, init, process};

/// Plays the part that the command line asks for; `None` when it asks for none, and the caller goes on.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        init::ROLE => Some(refusal(init::ROLE).unwrap_or_else(|| init::main())),
        guest::ROLE => Some(refusal(guest::ROLE).unwrap_or_else(|| guest::main())),
        process::ROLE => Some(process::exec(arguments)),
        _ => None,
    }
}

/// Says why this process must not act as a machine's first one, if it must not.
fn refusal(role: &str) -> Option<ExitCode> {
    let reason = fresh_machine(std::process::id(), Path::new("/proc/self")).err()?;
    eprintln!("lab: `{role}` mounts file systems and powers the machine off: it {reason}");
    Some(ExitCode::from(2))
}

/// Whether this is the first process of a machine in which nothing is mounted yet: in a container, which has a first process
/// as well, `proc` is.
fn fresh_machine(process: u32, proc: &Path) -> Result<(), String> {
    if process != 1 {
        return Err(format!(
            "runs as the first process of a machine that the lab starts, and this is process {process}"
        ));
    }
    if proc.exists() {
        return Err("runs in an initrd that has nothing mounted yet, and here /proc is mounted".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_process_of_an_initrd_plays_a_machines_part() {
        let (mounted, empty) = (Path::new("/proc/self"), Path::new("/proc/none"));
        assert_eq!(fresh_machine(1, empty), Ok(()));
        assert!(fresh_machine(1, mounted).unwrap_err().contains("/proc is mounted"));
        assert!(fresh_machine(7, empty).unwrap_err().ends_with("this is process 7"));
    }
}
