//! The console through real files and pseudo-terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::pipe;

use crate::config::Serial;
use crate::console::{Console, Input};

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
            move |offered| {
                busy = !busy;
                let count = if busy { 0 } else { offered.len().min(3) };
                taken.send(offered[..count].to_vec()).unwrap();
                count
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
    let mut console = Console::open(&Serial::File { path: path.clone(), max: None }, false).unwrap();
    assert!(console.input.is_none() && console.terminal.is_none());
    console.output.write_all(b"booted\n").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"booted\n");

    let nowhere = directory.path().join("no/log");
    assert_eq!(
        Console::open(&Serial::File { path: nowhere.clone(), max: None }, false).unwrap_err().to_string(),
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
    let mut console = Console::open(&Serial::File { path: path.clone(), max: Some(MAX as u64) }, false).unwrap();
    let read = |path: &Path| std::fs::read(path).unwrap();
    assert_eq!(read(&earlier), b"", "of an earlier run");
    let mut written = Vec::new();
    // Writes whose lengths do not divide the limit, and some that are longer than it.
    for (number, lines) in [1, 100, 411, 3, 700, 2000, 37, 512, 512, 1].into_iter().enumerate() {
        let piece = format!("{number:07}\n").repeat(lines);
        console.output.write_all(piece.as_bytes()).unwrap();
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
    let refusal = Console::open(&Serial::File { path, max: Some(MAX as u64) }, false).unwrap_err().to_string();
    assert!(refusal.starts_with(&format!("--serial file:{}: ", earlier.display())), "{refusal}");
}

#[test]
fn a_pty_is_raw_and_carries_both_ways_for_one_user_after_another() {
    let Console { mut output, input, .. } = Console::open(&Serial::Pty, false).unwrap();
    let input = input.unwrap();
    let path = nix::unistd::ttyname(input.held.as_ref().unwrap()).unwrap();
    let (sender, typed) = channel();
    input
        .pump(
            move |bytes| {
                sender.send(bytes.to_vec()).unwrap();
                bytes.len()
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
