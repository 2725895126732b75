//! The roles of one executable: first process of the emulated host or of a guest, and launcher of child processes.
//!
//! A first process mounts file systems over the machine's directories and powers the machine off at the end. So it
//! refuses to start unless the kernel has just started the machine from an initrd.

use std::path::Path;
use std::process::ExitCode;

use crate::{guest, init, process};

/// Acts in the role that the command line names; `None` when it names none, and the caller goes on.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        init::ROLE => Some(refusal(init::ROLE).unwrap_or_else(|| init::main())),
        guest::ROLE => Some(refusal(guest::ROLE).unwrap_or_else(|| guest::main())),
        process::ROLE => Some(process::exec(arguments)),
        _ => None,
    }
}

/// Prints why this process must not act as a machine's first process, if it must not.
fn refusal(role: &str) -> Option<ExitCode> {
    let reason = fresh_machine(std::process::id(), Path::new("/proc/self")).err()?;
    eprintln!("lab: `{role}` mounts file systems and powers the machine off: it {reason}");
    Some(ExitCode::from(2))
}

/// Checks that this is the first process of a machine in which nothing is mounted yet. A container has a first process
/// as well, but has `proc` mounted.
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
    fn only_the_first_process_of_an_initrd_takes_a_machines_role() {
        let (mounted, empty) = (Path::new("/proc/self"), Path::new("/proc/none"));
        assert_eq!(fresh_machine(1, empty), Ok(()));
        assert!(fresh_machine(1, mounted).unwrap_err().contains("/proc is mounted"));
        assert!(fresh_machine(7, empty).unwrap_err().ends_with("this is process 7"));
    }
}
