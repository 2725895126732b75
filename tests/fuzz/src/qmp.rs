//! Target: the input of a client of minivmm's control socket. The first byte says into what pieces the input is cut,
//! which must not matter. A line that is one JSON value, or none, has one answer, which echoes its `id`.

use std::io::{self, Read};
use std::thread;

use minivmm::control::Session;
use minivmm::vm::{AnyRequest, Handle, Next, Queue, Refusal, Request, RunState};
use serde_json::Value;

use crate::Target;

/// Memory for the answers, which are kept: each schema that `query-qmp-schema` returns takes some hundred KiB.
pub(crate) const TARGET: Target = Target { name: "qmp", memory: 256 << 20, body, seeds };

fn body(input: &[u8]) {
    let Some((&size, text)) = input.split_first() else { return };
    let whole = converse([text]);
    let size = usize::from(size).max(1);
    assert_eq!(converse(text.chunks(size)), whole, "in pieces of {size} bytes");
    assert_eq!(converse(text.split_inclusive(|&byte| byte == b'\n')), whole, "line by line");
    answered_once(text);
}

/// A client's input, which arrives in pieces.
struct Pieces<'a, I>(I, &'a [u8]);

impl<'a, I: Iterator<Item = &'a [u8]>> Read for Pieces<'a, I> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            let Some(piece) = self.0.next() else { return Ok(0) };
            self.1 = piece;
        }
        self.1.read(bytes)
    }
}

/// All answers of a session to a client that sends these pieces.
fn converse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Value> {
    let (handle, queue, _shared) = Handle::new(RunState::Running);
    let pieces = Pieces(pieces.into_iter(), &[]);
    thread::scope(|scope| {
        scope.spawn(move || drive(queue));
        let mut session = Session::new(handle.clone(), pieces);
        let mut answers = Vec::new();
        while let Some(command) = session.next_command() {
            answers.push(checked(&session.answer(command)));
        }
        // End the driver's thread, which waits for requests.
        let _ = handle.ask(Request::Quit);
        answers
    })
}

/// Grants every request, except those that a driver refuses for reasons of its own.
fn drive(mut queue: Queue) {
    while let Next::Asked((AnyRequest::User(request), answer)) = queue.next(&|| None) {
        let granted = match request {
            Request::Quit => return,
            Request::Migrate(..) => Err(Refusal("a migration is under way already".into())),
            _ => Ok(()),
        };
        let _ = answer.send(granted);
    }
}

/// Parses an answer, which must be one line of JSON: a result, or an error with class and description.
fn checked(answer: &[u8]) -> Value {
    let line = answer.strip_suffix(b"\r\n").expect("an answer is a line");
    assert!(!line.contains(&b'\n'), "more than one line");
    let answer: Value = serde_json::from_slice(line).expect("an answer is JSON");
    match (answer.get("return"), answer.get("error")) {
        (Some(_), None) => {}
        (None, Some(error)) => assert!(error["class"].is_string() && error["desc"].is_string(), "{error}"),
        _ => panic!("neither result nor error: {answer}"),
    }
    answer
}

/// Checks that each line which is one JSON value, or cannot become one, has one answer.
fn answered_once(text: &[u8]) {
    for line in text.split(|&byte| byte == b'\n') {
        let id = match serde_json::from_slice::<Value>(line) {
            Ok(value) => value.get("id").cloned(),
            Err(error) if error.is_eof() || error.to_string().starts_with("trailing characters") => continue,
            Err(_) => None,
        };
        // Each line in a session of its own: lines before it may change the session, but not the answer.
        let answers = converse([line, b"\n"]);
        let [answer] = &answers[..] else { panic!("{} answers to {:?}", answers.len(), String::from_utf8_lossy(line)) };
        assert_eq!(answer.get("id"), id.as_ref());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    const NEGOTIATE: &str = r#"{"execute":"qmp_capabilities","id":7}"#;
    let conversations: [&[&str]; 8] = [
        &[
            r#"{"execute":"query-commands"}"#,
            r#"{"execute":"query-version"}"#,
            r#"{"execute":"query-status","id":null}"#,
        ],
        &[r#"{"execute":"stop"}{"execute":"cont"}"#, r#"{"execute":"cont","arguments":{"force":true},"id":{"a":[1]}}"#],
        &[r#"{"execute":"system_reset"}"#, r#"{"execute":"system_powerdown"}"#, r#"{"execute":"nope"}"#],
        &[
            r#"{"execute":"migrate","arguments":{"uri":"tcp:[::1]:4444"}}"#,
            r#"{"execute":"migrate","arguments":{"uri":"unix:/x","target-schema":"/y"}}"#,
            r#"{"execute":"migrate_cancel"}"#,
        ],
        &[
            r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":20,"max-bandwidth":0}}"#,
            r#"{"execute":"migrate-set-parameters","arguments":{"pause-budget":2000001}}"#,
            r#"{"execute":"query-migrate-parameters"}"#,
            r#"{"execute":"query-migrate"}"#,
        ],
        &[r#"{"execute":"dump-schema","arguments":{"file":"/x"}}"#, r#"{"execute":"quit"}"#, r#"{"execute":"stop"}"#],
        &["{bad json} more", "[1]", "12 34", "true", r#"{"execute":3,"extra":1}"#, "\"\\ud800\"", "[[[[[[[["],
        &["{\"execute\":", "\"query-status\"}", "\u{c}5", "1e999", "{\"id\":1,\"id\":2}"],
    ];
    let conversation = |(size, lines): (u8, &[&str])| {
        let text = [&[NEGOTIATE], lines].concat().join("\n");
        [&[size], text.as_bytes(), b"\n"].concat()
    };
    [1, 2, 3, 5, 7, 16, 1, 3].into_iter().zip(conversations).map(conversation).collect()
}
