//! Clients of the control socket that send commands as fast as they can.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use crate::process::{AT_ONCE, Process, until};

/// Number of migrations that the test observes.
const MIGRATIONS: u32 = 30;

/// Each migration is refused by its destination, or cancelled: there is one at a time, with its thread, and everything of it is
/// gone before the next.
#[test]
fn floods_of_migrate_and_cancel_delay_no_command_and_leave_nothing_behind() {
    let Some(mut process) = Process::start(&[], &["--serial", "none", "--append", "10 0"]) else { return };
    let mut user = process.user();
    let (nobody, none) = (json!({"uri": process.unused_address()}), json!({}));
    let floods = [("migrate", &nobody), ("migrate_cancel", &none), ("query-migrate", &none)];
    let answers = Mutex::new(BTreeMap::<String, u32>::new());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (command, arguments) in floods.repeat(4) {
            let mut client = process.user();
            let (answers, done) = (&answers, &done);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let (answer, _) = client.ask_with(command, arguments);
                    let kind = answer["error"]["desc"].as_str().map_or("carried out".into(), ToOwned::to_owned);
                    *answers.lock().unwrap().entry(format!("{command}: {kind}")).or_default() += 1;
                }
            });
        }
        let mut most = 0;
        until("migrations", || {
            most = most.max(process.threads("migration").len());
            (answers.lock().unwrap().get("migrate: carried out") >= Some(&MIGRATIONS)).then_some(())
        });
        // On a busy host, threads of ended migrations may still be there.
        assert!(most < MIGRATIONS as usize / 2, "{most} threads of migrations");
        for command in ["stop", "query-status", "cont"] {
            let (answer, took) = user.ask(command);
            assert!(answer.get("return").is_some() && took < AT_ONCE, "{command}: {answer} after {took:?}");
        }
        done.store(true, Ordering::SeqCst);
    });
    let refusals = answers.into_inner().unwrap();
    let known =
        |answer: &&String| answer.ends_with("carried out") || answer.contains("a migration is under way already");
    assert!(refusals.keys().all(|answer| known(&answer)), "{refusals:?}");
    until("end of the last migration", || process.threads("migration").is_empty().then_some(()));
    let (answer, took) = user.ask("quit");
    assert!(answer.get("return").is_some() && took < AT_ONCE, "{answer} after {took:?}");
    assert_eq!(process.end_within(AT_ONCE), Some(0));
}
