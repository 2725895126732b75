//! A hostile peer that sends made-up device state: some hundred damaged copies of a real migration stream, each loaded by a
//! process of the built command on `/dev/kvm`, where the guest then runs for a moment with these registers, interrupts, clocks
//! and rings.
//!
//! For each stream, the process refuses it with a message, ends in order, or answers and can be stopped and ended. The oracle
//! is the kernel's information about the process, and its answers. `VMSTATE_STREAMS` is the number of streams, `VMSTATE_SEED`
//! selects the damage; a failure prints the seed that repeats it.

mod damage;
mod stream;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmstate_lab::random::Random;
use vmstate_lab::tiny;
use vmstate_lab::vmm::{Program, Vmm};

use damage::damaged;
use stream::{Recorded, config};

type Result<T> = std::result::Result<T, String>;

/// Number of streams in an ordinary run.
const STREAMS: u64 = 300;
const SEED: u64 = 0x9e1;

/// Processes that run at a time: each waits about as long as it computes.
const AT_A_TIME: u64 = 2;
/// Bound of a load, which takes some milliseconds on an idle host.
const LOAD: Duration = Duration::from_secs(60);
/// Time for which the guest runs, some ten of its passes; on a busy host, the time that an undamaged one needs for as many.
const MOMENT: Duration = Duration::from_millis(40);
const PASSES: usize = 10;
/// Bound of an answer or an end; many times what a busy host needs.
const PROMPT: Duration = Duration::from_secs(60);
/// Largest memory of a process with 16 MiB of guest RAM. With an undamaged stream it is 15 MiB.
const RESIDENT_MAX_MIB: u64 = 64;

/// Result of a stream in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The process did not load the stream, and ended.
    Refused,
    /// The process loaded the stream; the guest ran until it was stopped, or stays stopped.
    Ran,
    /// The process loaded the stream, and the guest ended the machine: it powered off, or did something that KVM cannot do.
    EndedItself,
}

#[test]
fn device_state_that_a_peer_makes_up_costs_only_its_guest() {
    if let Err(error) = minivmm::kvm::open() {
        return vmstate_lab::skip::skip(error);
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (streams, seed) = (number("VMSTATE_STREAMS").unwrap_or(STREAMS), number("VMSTATE_SEED").unwrap_or(SEED));
    let recorded = Recorded::make().unwrap_or_else(|why| panic!("no stream to damage: {why}"));
    let mut moment = Duration::ZERO;
    let (outcome, passes) = play(&recorded, &recorded.bytes, |vmm| {
        let begun = Instant::now();
        while tiny::passes(&vmm.console()).len() < PASSES && begun.elapsed() < PROMPT {
            std::thread::sleep(Duration::from_millis(1));
        }
        moment = MOMENT.max(begun.elapsed());
    })
    .unwrap();
    assert!(outcome == Outcome::Ran && passes >= PASSES, "undamaged: {outcome:?}, {passes} passes");

    let one = |index: u64| {
        let mut random = Random::new(seed.wrapping_add(index));
        let section = &recorded.sections[random.below(recorded.sections.len() as u64) as usize];
        let (bytes, what) = damaged(&recorded.bytes, section.body.clone(), &mut random);
        let played = play(&recorded, &bytes, |_| std::thread::sleep(moment));
        let repeat = || format!("VMSTATE_STREAMS=1 VMSTATE_SEED={}, {}: {what}", seed + index, section.name);
        (&section.name, played.map_err(|why| format!("{}: {why}", repeat())))
    };
    let played: Vec<_> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..AT_A_TIME)
            .map(|part| scope.spawn(move || (part..streams).step_by(AT_A_TIME as usize).map(one).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    });
    let mut outcomes = BTreeMap::<_, u64>::new();
    let (mut failures, mut went_on) = (Vec::new(), 0);
    for (section, played) in played {
        match played {
            Ok((outcome, passes)) => {
                *outcomes.entry((section, outcome)).or_default() += 1;
                went_on += u64::from(passes >= 2);
            }
            Err(why) => failures.push(why),
        }
    }
    for ((section, outcome), count) in &outcomes {
        println!("{count:4} {section}: {outcome:?}");
    }
    assert!(failures.is_empty(), "{} of {streams}:\n{}\n", failures.len(), failures.join("\n"));
    let count = |outcome| outcomes.iter().filter(|((_, one), _)| *one == outcome).map(|(_, count)| count).sum::<u64>();
    let (refused, ran) = (count(Outcome::Refused), count(Outcome::Ran));
    println!("{streams} streams: {refused} refused, {ran} ran, in {went_on} the guest went on counting");
    // Otherwise the streams prove little. A single stream that is repeated proves enough.
    assert!(streams < STREAMS || (refused >= streams / 10 && ran >= streams / 4 && went_on >= streams / 10));
}

/// Makes a process load `bytes` and run the guest for the duration of `run`; returns the result and the guest's number of
/// passes.
fn play(recorded: &Recorded, bytes: &[u8], run: impl FnOnce(&Vmm)) -> Result<(Outcome, usize)> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let incoming_socket = directory.path().join("incoming");
    let mut config = config(directory.path(), &recorded.image)?;
    config.incoming = Some(format!("unix:{}", incoming_socket.display()));
    let program = Program::Minivmm(env!("CARGO_BIN_EXE_minivmm").into());
    let mut vmm = Vmm::spawn(None, &program, &config).map_err(|error| error.to_string())?;
    let sent = send(&incoming_socket, bytes)?;
    let outcome = follow(&mut vmm, &sent, run);
    // The sender reads until the process has closed the connection, which has ended by now or is killed here.
    vmm.process().kill();
    let _ = sent.join();
    vmm.wait_end(Instant::now() + PROMPT).map_err(|error| error.to_string())?;
    let said = vmm.errors();
    let passes = tiny::passes(&vmm.console()).len();
    match outcome {
        Ok(_) if said.contains("panicked") => Err(format!("it panicked: {said}")),
        Ok(outcome) => Ok((outcome, passes)),
        Err(why) => Err(format!("{why}; it said: {said:?}")),
    }
}

/// Plays the source, which reads every answer and ignores it.
fn send(incoming_socket: &Path, bytes: &[u8]) -> Result<JoinHandle<()>> {
    let failed = |error: std::io::Error| format!("{}: {error}", incoming_socket.display());
    let mut wire = UnixStream::connect(incoming_socket).map_err(failed)?;
    let mut answers = wire.try_clone().map_err(failed)?;
    let bytes = bytes.to_vec();
    Ok(std::thread::spawn(move || {
        let hearing = std::thread::spawn(move || answers.read_to_end(&mut Vec::new()));
        // A process that has refused the stream reads no more of it.
        let _ = wire.write_all(&bytes).and_then(|()| wire.shutdown(Shutdown::Write));
        let _ = hearing.join();
    }))
}

fn follow(vmm: &mut Vmm, sent: &JoinHandle<()>, run: impl FnOnce(&Vmm)) -> Result<Outcome> {
    let begun = Instant::now();
    let loaded = loop {
        if let Some(status) = vmm.process().ended() {
            return in_order(status).map(|()| Outcome::Refused);
        }
        let hung_up = sent.is_finished();
        match vmm.status() {
            Ok(state) if state != "inmigrate" => break state,
            // The source was turned away before the first page, and the process waits for another one.
            Ok(_) if hung_up => {
                // The process may have ended just now.
                let _ = answers(vmm, "quit");
                let status = vmm.process().wait(Instant::now() + PROMPT).map_err(|error| error.to_string())?;
                return in_order(status).map(|()| Outcome::Refused);
            }
            _ if begun.elapsed() > LOAD => return Err(format!("neither loaded nor refused within {LOAD:?}")),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    // The guest was stopped when it was sent. A machine that cannot resume says so, which is an answer, too.
    let answered = (|| {
        answers(vmm, "cont")?;
        run(vmm);
        ["query-status", "query-migrate", "stop", "query-status"].iter().try_for_each(|command| answers(vmm, command))
    })();
    let resident = resident_mib(vmm.process().child().id());
    let quit = answered.and_then(|()| answers(vmm, "quit"));
    let status = vmm.process().wait(Instant::now() + PROMPT).map_err(|error| format!("{loaded}: {quit:?}: {error}"))?;
    in_order(status)?;
    match resident {
        Some(mib) if mib > RESIDENT_MAX_MIB => {
            Err(format!("{loaded}: {mib} MiB were resident, at most {RESIDENT_MAX_MIB} are allowed"))
        }
        // A process that has ended has no memory.
        _ => Ok(if quit.is_ok() { Outcome::Ran } else { Outcome::EndedItself }),
    }
}

/// Accepts any answer, also a refusal.
fn answers(vmm: &mut Vmm, command: &str) -> Result<()> {
    match vmm.qmp.execute(command, Value::Null) {
        Err(error) if error.to_string().contains("connection is lost") => Err(format!("{command}: {error}")),
        _ => Ok(()),
    }
}

/// Accepts an exit code of the command's own; a signal or a panic's code is an error.
fn in_order(status: ExitStatus) -> Result<()> {
    match status.code() {
        Some(0..=2) => Ok(()),
        _ => Err(format!("it ended with {status}")),
    }
}

/// Peak memory of the process (`VmHWM` of proc_pid_status(5), in KiB).
fn resident_mib(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib >> 10)
}
