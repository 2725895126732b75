//! The console through real files and pseudo-terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::pipe;

use crate::config::Serial;
use crate::console::{Console, HandedOver, Input};
use crate::devices::serial::Output;

const SOON: Duration = Duration::from_secs(10);

/// Returns what a port gets that takes at most three bytes at a time, and none at every other call; and whether the end was
/// asked for.
fn pumped(input: fn(File) -> Input, typed: &[&[u8]]) -> (Vec<u8>, bool) {
    let (read, write) = pipe().unwrap();
    let mut keyboard = File::from(write);
    let (taken, bytes) = channel();
    let (quit, quits) = channel();
    let mut busy = false;
    let pump = input(read.into())
        .pump(
            move |read| {
                busy = !busy;
                if !busy {
                    taken.send(read(3)).unwrap();
                }
                !busy
            },
            move || quit.send(()).unwrap(),
        )
        .unwrap();
    for keys in typed {
        keyboard.write_all(keys).unwrap();
    }
    drop(keyboard);
    pump.join().unwrap();
    (bytes.iter().flatten().collect(), quits.try_recv().is_ok())
}

#[test]
fn the_port_gets_every_byte_in_order_and_the_end_of_input_is_quiet() {
    let text: Vec<u8> = (0..=255).cycle().take(600).collect();
    let chunks: Vec<&[u8]> = text.chunks(250).collect();
    assert_eq!(pumped(Input::plain, &chunks), (text.clone(), false));
}

#[test]
fn ctrl_a_x_ends_the_machine() {
    assert_eq!(pumped(Input::with_escape, &[b"ls\n\x01", b"xrest"]), (b"ls\n".to_vec(), true));
    assert_eq!(pumped(Input::with_escape, &[b"a\x01\x01x\x01hb"]), (b"a\x01xb".to_vec(), false));
    assert_eq!(pumped(Input::plain, &[b"a\x01x"]), (b"a\x01x".to_vec(), false));
}

#[test]
fn a_file_gets_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "of an earlier run").unwrap();
    let console = Console::open(&Serial::File { path: path.clone(), max: None }, None).unwrap();
    assert!(console.input.is_none() && console.terminal.is_none());
    let mut output = Output::new(console.output).unwrap();
    output.write_all(b"booted\n").unwrap();
    output.drain(SOON);
    assert_eq!(std::fs::read(&path).unwrap(), b"booted\n");

    let nowhere = directory.path().join("no/log");
    assert_eq!(
        Console::open(&Serial::File { path: nowhere.clone(), max: None }, None).unwrap_err().to_string(),
        format!(
            "--serial file:{}: No such file or directory (os error 2); choose a path that you may write",
            nowhere.display()
        )
    );
}

/// Both files together hold the end of the output, and at least as much as fits one file. The test's output is numbers in lines
/// of eight bytes.
#[test]
fn a_file_with_a_limit_keeps_the_last_of_the_output() {
    const MAX: usize = 4096;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let earlier = directory.path().join("log.1");
    std::fs::write(&earlier, [b'x'; 3 * MAX]).unwrap();
    let console = Console::open(&Serial::File { path: path.clone(), max: Some(MAX as u64) }, None).unwrap();
    let mut output = Output::new(console.output).unwrap();
    let read = |path: &Path| std::fs::read(path).unwrap();
    assert_eq!(read(&earlier), b"", "of an earlier run");
    let mut written = Vec::new();
    // Writes whose lengths do not divide the limit, and some that are longer than it.
    for (number, lines) in [1, 100, 411, 3, 700, 2000, 37, 512, 512, 1].into_iter().enumerate() {
        let piece = format!("{number:07}\n").repeat(lines);
        output.write_all(piece.as_bytes()).unwrap();
        output.drain(SOON);
        written.extend(piece.into_bytes());
        let (last, first) = (read(&path), read(&earlier));
        assert!(last.len() <= MAX && first.len() <= MAX, "{} and {} bytes", first.len(), last.len());
        let kept = [first, last].concat();
        assert!(written.ends_with(&kept), "after piece {number}");
        assert!(kept.len() >= MAX.min(written.len()), "{} bytes of {} are kept", kept.len(), written.len());
    }
    // The error names the second file if it cannot be opened.
    std::fs::remove_file(&earlier).unwrap();
    std::fs::create_dir(&earlier).unwrap();
    let refusal = Console::open(&Serial::File { path, max: Some(MAX as u64) }, None).unwrap_err().to_string();
    assert!(refusal.starts_with(&format!("--serial file:{}: ", earlier.display())), "{refusal}");
}

/// What a terminal that nobody reads has taken, and what is held back, are the whole output in order; a release writes the rest.
#[test]
fn output_that_is_held_is_what_the_terminal_has_not_taken() {
    let Console { output, input, .. } = Console::open(&Serial::Pty, None).unwrap();
    let path = nix::unistd::ttyname(input.as_ref().unwrap().held.as_ref().unwrap()).unwrap();
    let mut output = Output::new(output).unwrap();
    // More than the terminal takes.
    let text: Vec<u8> = (b'!'..=b'~').cycle().take(300_000).collect();
    output.write_all(&text).unwrap();
    output.drain(Duration::from_millis(300));
    let held = output.hold();
    assert!(!held.is_empty() && held.len() < text.len(), "{} bytes are held", held.len());
    let mut user = File::open(&path).unwrap();
    let mut shown = vec![0; text.len() - held.len()];
    user.read_exact(&mut shown).unwrap();
    assert!([shown, held.clone()].concat() == text);
    output.release();
    let mut rest = vec![0; held.len()];
    user.read_exact(&mut rest).unwrap();
    assert!(rest == held);
}

/// The new process continues both files where the old one was, and writes no more to the first one than its limit.
#[test]
fn a_console_that_was_handed_over_continues_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    for max in [None, Some(4096)] {
        let serial = Serial::File { path: path.clone(), max };
        let old = Output::new(Console::open(&serial, None).unwrap().output).unwrap();
        let mut descriptors = HandedOver::new();
        for (name, descriptor) in old.descriptors() {
            descriptors.insert(name.to_owned(), descriptor.try_clone_to_owned().unwrap());
        }
        old.clone().write_all(&[b'a'; 3000]).unwrap();
        old.drain(SOON);
        let mut new = Output::new(Console::open(&serial, Some(&mut descriptors)).unwrap().output).unwrap();
        old.clone().write_all(&[b'b'; 1000]).unwrap();
        old.drain(SOON);
        new.write_all(&[b'c'; 1000]).unwrap();
        new.drain(SOON);
        let whole = [[b'a'; 3000].as_slice(), &[b'b'; 1000], &[b'c'; 1000]].concat();
        let read = |path: &Path| std::fs::read(path).unwrap();
        match max {
            None => assert!(read(&path) == whole),
            Some(max) => {
                assert!([read(&directory.path().join("log.1")), read(&path)].concat() == whole);
                assert!(read(&path).len() <= max as usize);
            }
        }
    }
}

#[test]
fn a_pty_is_raw_and_carries_both_ways_for_one_user_after_another() {
    let Console { output, input, .. } = Console::open(&Serial::Pty, None).unwrap();
    let mut output = Output::new(output).unwrap();
    let input = input.unwrap();
    let path = nix::unistd::ttyname(input.held.as_ref().unwrap()).unwrap();
    let (sender, typed) = channel();
    input
        .pump(
            move |read| {
                sender.send(read(16)).unwrap();
                true
            },
            || (),
        )
        .unwrap();
    for _user in 0..2 {
        let mut user = File::options().read(true).write(true).open(&path).unwrap();
        let settings = tcgetattr(&user).unwrap();
        let cooked = LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG;
        assert!(!settings.local_flags.intersects(cooked), "echo, line editing or Ctrl-C is on: {settings:?}");
        user.write_all(b"\x03\r").unwrap();
        let mut got = Vec::new();
        while got.len() < 2 {
            got.extend(typed.recv_timeout(SOON).unwrap());
        }
        assert_eq!(got, b"\x03\r");
        output.write_all(b"\x1b[0m\n").unwrap();
        let mut shown = [0; 5];
        user.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"\x1b[0m\n");
    }
}
