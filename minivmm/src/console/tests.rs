//! The console through real files and pseudo-terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::pipe;

use crate::config::Serial;
use crate::console::{Console, Input};

const SOON: Duration = Duration::from_secs(10);

/// What a port gets that takes at most three bytes at a time, and none at every other call.
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
    let mut console = Console::open(&Serial::File(path.clone())).unwrap();
    assert!(console.input.is_none() && console.terminal.is_none());
    console.output.write_all(b"booted\n").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"booted\n");

    let nowhere = directory.path().join("no/log");
    assert_eq!(
        Console::open(&Serial::File(nowhere.clone())).unwrap_err().to_string(),
        format!(
            "--serial file:{}: No such file or directory (os error 2); choose a path that you may write",
            nowhere.display()
        )
    );
}

#[test]
fn a_pty_is_raw_and_carries_both_ways_for_one_user_after_another() {
    let Console { mut output, input, .. } = Console::open(&Serial::Pty).unwrap();
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
