//! The `minivmm` command as a function: calls the module of the requested command, and turns the outcome into an exit code.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use nix::sys::signal::{SigSet, Signal};

use crate::cli::{
    self, Command, EXIT_UNACKNOWLEDGED, EXIT_UNDECIDED, EXIT_UNKNOWN, EXIT_USAGE, MigrateArgs, Outcome, Parsed,
    PlanArgs, TlsCommand, Translation,
};
use crate::config::{Address, Config};
use crate::console::{self, Console};
use crate::control::{ClientError, ControlSocket, METRICS_DESCRIPTOR, MetricsSocket, Server};
use crate::error::print_message;
use crate::passed;
use crate::sandbox::{self, Kind, OnViolation};
use crate::vm::{End, HandedOver, Handle, Request, Vm};

/// Carries out the command in `arguments`, the first of which is the program's name; returns the exit code. Must run on the
/// main thread before there are others, since it blocks signals for all threads.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match cli::parse(arguments) {
        Ok(Parsed::Command(command)) => *command,
        Ok(Parsed::Text(text)) => return print(text.as_bytes()),
        Err(error) => return refuse(&error),
    };
    match command {
        Command::Run(arguments) => {
            if let Some(log) = arguments.log() {
                log.begin();
            }
            let (confined, metrics) = (arguments.confined(), arguments.metrics());
            match arguments.into_config() {
                Ok(config) => run(config, confined, metrics.as_ref()),
                Err(error) => refuse(&error),
            }
        }
        Command::Migrate(arguments) => migrate(&arguments),
        Command::Snapshot(command) => match command.into_migration() {
            Ok(migration) => migrate(&migration),
            Err(error) => fail(&error),
        },
        Command::Backup(arguments) => asked(arguments.carry_out()),
        Command::Plan(arguments) => plan(&arguments),
        Command::Status(arguments) => match arguments.carry_out() {
            Ok(text) => print(format!("{text}\n").as_bytes()),
            Err(error) => not_asked(&error),
        },
        Command::Stop(arguments) => asked(arguments.carry_out("stop")),
        Command::Cont(arguments) => asked(arguments.carry_out()),
        Command::Quit(arguments) => asked(arguments.carry_out("quit")),
        Command::Tls(command) => tls(&command),
        Command::FromQemu(arguments) => translate(cli::from_qemu(&arguments.words)),
        Command::ToQemu(arguments) => translate(cli::to_qemu(&arguments.words)),
        Command::Completions(arguments) => print(&arguments.text()),
        Command::Man(arguments) => match arguments.carry_out() {
            Ok(page) => print(&page),
            Err(error) => refuse(&error),
        },
    }
}

/// Runs a machine on this thread; console, control socket and metrics have threads of their own. `confined`: in the sandbox.
fn run(mut config: Config, confined: bool, metrics: Option<&Address>) -> ExitCode {
    // Before there is another thread, since threads inherit the mask.
    let signals = SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
    if let Err(error) = signals.thread_block() {
        return fail(&format!("the host does not let signals be blocked: {error}"));
    }
    if confined && let Err(error) = sandbox::arm(OnViolation::OF_THIS_BUILD) {
        return refuse(&error);
    }
    let machine = Arc::new(OnceLock::new());
    let started = Arc::clone(&machine);
    if let Err(error) = sandbox::spawn(Kind::Console, "signals", move || end_on_signal(&signals, &started)) {
        return fail(&format!("cannot spawn the thread for signals: {error}"));
    }
    let mut handed_over = match HandedOver::awaited(&mut config) {
        Ok(handed_over) => handed_over,
        Err(error) => return refuse(&error.with_causes()),
    };
    let successor = handed_over.is_some();
    let descriptors = handed_over.as_mut().map(|handed_over| &mut handed_over.descriptors);
    let console = match Console::open(&config.serial, descriptors) {
        Ok(console) => console,
        Err(error) => return refuse(&error),
    };
    let listener = handed_over.as_mut().and_then(|handed_over| handed_over.descriptors.remove(METRICS_DESCRIPTOR));
    let Console { output, input, terminal: _terminal } = console;
    let control = config.control.clone();
    let open = if successor { ControlSocket::succeed } else { ControlSocket::open };
    let mut vm = match Vm::taking_over(config, output, handed_over) {
        Ok(vm) => vm,
        Err(error) => return refuse(&error.with_causes()),
    };
    let socket = match control.map(|path| open("--control", &path)).transpose() {
        Ok(socket) => socket,
        Err(error) => return refuse(&error),
    };
    let metrics = match metrics.map(|address| MetricsSocket::open(address, listener)).transpose() {
        Ok(metrics) => metrics,
        Err(error) => return refuse(&error),
    };
    if let Some(metrics) = &metrics {
        match metrics.descriptor() {
            Ok(listener) => vm.hand_over_also(METRICS_DESCRIPTOR, listener),
            Err(error) => return fail(&format!("cannot duplicate the socket for metrics: {error}")),
        }
    }
    // Machine, console and control socket have their duplicates.
    passed::close();
    // Before the first client is served: every client that can reach the machine can end it in order.
    let _ = machine.set(vm.handle());
    let _server = match socket.map(|socket| Server::serve(socket, vm.handle())).transpose() {
        Ok(server) => server,
        Err(error) => return refuse(&error),
    };
    let _metrics = match metrics.map(|metrics| metrics.serve(vm.handle())).transpose() {
        Ok(metrics) => metrics,
        Err(error) => return fail(&format!("cannot spawn the thread for metrics: {error}")),
    };
    if let Some(input) = input {
        let (keyboard, handle) = (vm.keyboard(), vm.handle());
        let quit = move || handle.send(Request::Quit);
        if let Err(error) = input.pump(move |read| keyboard.receive(read), quit) {
            return fail(&format!("cannot spawn the thread for the console: {error}"));
        }
    }
    match vm.run() {
        End::PoweredOff | End::Quit => ExitCode::SUCCESS,
        End::Failed(why) => fail(&why),
    }
}

/// The first signal ends the machine in order, the second one ends the process at once. Before there is a machine, the first
/// one ends the process at once, too: opening its parts may take long.
fn end_on_signal(signals: &SigSet, machine: &OnceLock<Handle>) {
    let mut asked_to_quit = false;
    while let Ok(signal) = signals.wait() {
        match machine.get() {
            Some(handle) if !asked_to_quit => handle.send(Request::Quit),
            _ => {
                console::restore();
                std::process::exit(128 + signal as i32);
            }
        }
        asked_to_quit = true;
    }
}

fn migrate(arguments: &MigrateArgs) -> ExitCode {
    match arguments.carry_out() {
        Ok(Outcome::Completed) => ExitCode::SUCCESS,
        Ok(Outcome::Stayed(why)) => fail(&why),
        Ok(Outcome::Unacknowledged(why)) => end(&why, EXIT_UNACKNOWLEDGED),
        Ok(Outcome::Undecided(why)) => end(&why, EXIT_UNDECIDED),
        Ok(Outcome::Unknown(why)) => end(&why, EXIT_UNKNOWN),
        Err(error) => not_asked(&error),
    }
}

/// Prints the plan; success if the migration completes.
fn plan(arguments: &PlanArgs) -> ExitCode {
    match arguments.carry_out() {
        Ok(planned) => {
            let printed = print(format!("{}\n", planned.text).as_bytes());
            if planned.completes { printed } else { ExitCode::FAILURE }
        }
        Err(error) => refuse(&error),
    }
}

/// Prints which certificates were made.
fn tls(command: &TlsCommand) -> ExitCode {
    match command.carry_out() {
        Ok(text) => print(format!("{text}\n").as_bytes()),
        Err(error) => refuse(&error),
    }
}

fn asked(answer: Result<(), ClientError>) -> ExitCode {
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => not_asked(&error),
    }
}

/// Prints to standard output. A reader that closes early, as `head` does, is no error.
fn print(bytes: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => fail(&format!("standard output: {error}")),
        _ => ExitCode::SUCCESS,
    }
}

/// Prints the translated line, or a line on standard error for each part without a match.
fn translate(translation: Translation) -> ExitCode {
    match translation {
        Ok(words) => print(format!("{}\n", cli::line(&words)).as_bytes()),
        Err(parts) => {
            parts.iter().for_each(print_message);
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Reports a machine that could not be reached, or that refused.
fn not_asked(error: &ClientError) -> ExitCode {
    match error {
        ClientError::Connect { .. } | ClientError::Report { .. } | ClientError::Address { .. } => refuse(error),
        _ => fail(error),
    }
}

/// Reports a mistake that a change of the command mends.
fn refuse(sentence: &dyn Display) -> ExitCode {
    end(sentence, EXIT_USAGE)
}

/// Reports that the command, which was right, failed.
fn fail(sentence: &dyn Display) -> ExitCode {
    end(sentence, 1)
}

fn end(sentence: &dyn Display, code: u8) -> ExitCode {
    print_message(sentence);
    ExitCode::from(code)
}
