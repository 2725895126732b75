//! `announce-self`, and the migration parameters that say how an arriving guest is announced.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::control::commands::{Arguments, Failure, ask};
use crate::control::descriptors::Caller;
use crate::control::kind::{Kind, Member, needed, optional};
use crate::control::table::Command;
use crate::devices::virtio::net::Announcing;
use crate::vm::Request;

/// One of the four figures: its name as an argument and as a parameter, and its range (QEMU's migration/options.c).
type Figure = (&'static str, &'static str, i64, i64);

const INITIAL: Figure = ("initial", "announce-initial", 0, 100_000);
const MAX: Figure = ("max", "announce-max", 0, 100_000);
const ROUNDS: Figure = ("rounds", "announce-rounds", 0, 1000);
const STEP: Figure = ("step", "announce-step", 1, 10_000);
const ALL: [Figure; 4] = [INITIAL, MAX, ROUNDS, STEP];

const ALL_CARDS: &str = "every card is announced, in the same way";

/// Rows of the command table.
pub(super) fn commands() -> Vec<Command> {
    vec![
        Command::new(
            "announce-self",
            "each network card sends a RARP request, and has the guest announce itself if the guest can, `rounds` times: the second \
             time `initial` ms behind the first, and the distance grows by `step` ms each time, up to `max` ms",
            announce,
        )
        .takes(ALL.map(|(name, ..)| needed(name, Kind::Integer)))
        .lacks(&[("interfaces", ALL_CARDS), ("id", ALL_CARDS)]),
    ]
}

/// Members of `migrate-set-parameters` and `query-migrate-parameters` for the announcement.
pub(super) fn parameters() -> [Member; 4] {
    ALL.map(|(_, name, ..)| optional(name, Kind::Size))
}

/// Takes the announcement's parameters out of `members`, and returns `announcing` with these changes.
///
/// # Errors
/// A value is out of its range.
pub(super) fn take(announcing: Announcing, members: &mut Map<String, Value>) -> Result<Announcing, Failure> {
    changed(announcing, |(_, parameter, ..)| (parameter, members.shift_remove(parameter)))
}

/// Adds the announcement's parameters to `members`.
pub(super) fn show(announcing: Announcing, members: &mut Value) {
    for ((_, parameter, ..), value) in figures(announcing) {
        members[parameter] = value;
    }
}

/// Arguments of `announce-self` that repeat the default announcement of an arriving guest.
pub(super) fn defaults() -> Value {
    let arguments = figures(Announcing::default()).map(|((argument, ..), value)| (argument.into(), value));
    Value::Object(arguments.into_iter().collect())
}

fn figures(announcing: Announcing) -> [(Figure, Value); 4] {
    let ms = |time: Duration| json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let Announcing { initial, max, rounds, step } = announcing;
    [(INITIAL, ms(initial)), (MAX, ms(max)), (ROUNDS, json!(rounds)), (STEP, ms(step))]
}

fn announce(caller: &Caller, arguments: Arguments) -> Result<Value, Failure> {
    let mut members = arguments.into_members();
    let with = changed(Announcing::default(), |(name, ..)| (name, members.shift_remove(name)))?;
    ask(caller, Request::Announce(with))
}

fn changed(
    mut announcing: Announcing,
    mut given: impl FnMut(Figure) -> (&'static str, Option<Value>),
) -> Result<Announcing, Failure> {
    let mut figure = |figure: Figure| -> Result<Option<u64>, Failure> {
        let (_, _, least, most) = figure;
        match given(figure) {
            (_, None) => Ok(None),
            (name, Some(value)) => match value.as_i64().filter(|value| (least..=most).contains(value)) {
                Some(value) => Ok(Some(value.unsigned_abs())),
                None => Err(Failure::generic(format!("Parameter '{name}' expects a value between {least} and {most}"))),
            },
        }
    };
    for (place, which) in [(&mut announcing.initial, INITIAL), (&mut announcing.max, MAX), (&mut announcing.step, STEP)]
    {
        if let Some(time) = figure(which)? {
            *place = Duration::from_millis(time);
        }
    }
    if let Some(rounds) = figure(ROUNDS)? {
        announcing.rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
    }
    Ok(announcing)
}
