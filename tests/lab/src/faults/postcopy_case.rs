//! One case of the matrix of post-copy, with two real processes: the phase, the fault, and the conditions after it.

use std::time::Instant;

use serde_json::Value;

use super::case::{check_outcome, oddities, released};
use super::cell::{Cell, Fault};
use super::ending::Told;
use super::marks::Mark;
use super::place::{Oddities, Place};
use super::postcopy::Moment;
use super::side::Side;
use super::subject::Ground;
use super::wire::Wire;
use super::{PATIENCE, Result, until};

/// Causes the fault for a guest that runs at `source` and checks the outcome.
///
/// # Errors
/// The condition that failed, and the state of both sides.
pub fn walk(ground: &Ground, source: Side, fault: Fault, moment: Moment, cell: &Cell) -> Result<()> {
    let Cell::Ends { .. } = cell else { return Ok(()) };
    let oddities = Oddities { hold: Some(moment.mark()), ..oddities(fault, moment.mark()) };
    let mut place = Place::new(ground, source, &oddities)?;
    let told = reach(moment, &mut place).and_then(|()| inject(fault, &mut place));
    check_outcome(&mut place, fault, cell, told)
}

/// Migrates until the phase is reached.
fn reach(moment: Moment, place: &mut Place) -> Result<()> {
    place.migrate()?;
    place.wire.await_mark(moment.mark(), Instant::now() + PATIENCE)?;
    if moment >= Moment::Runs {
        // The destination reports that it runs the guest just before it does.
        until("the destination runs the guest", || Ok(place.destination.answers()?.0 == "running"))?;
    }
    if let Moment::Paused | Moment::Recovery = moment {
        place.wire.behave(Wire::Cut);
        until("both sides notice that the connection broke", || {
            Ok([&mut place.source, &mut place.destination]
                .into_iter()
                .all(|side| side.answers().is_ok_and(|(_, status, _)| status == "postcopy-paused")))
        })?;
    }
    if moment == Moment::Recovery {
        place.resume(Some(Mark::Resume))?;
        place.wire.await_mark(Mark::Resume, Instant::now() + PATIENCE)?;
    }
    Ok(())
}

fn inject(fault: Fault, place: &mut Place) -> Result<Told> {
    match fault {
        Fault::SourceKilled => place.source.kill(),
        Fault::DestinationKilled => place.destination.kill(),
        Fault::WireCut => {
            place.wire.behave(Wire::Cut);
            return Ok(None);
        }
        Fault::WireStalls => {
            place.wire.behave(Wire::Stalls);
            until("the source gives the connection up", || {
                let (_, status, _) = place.source.answers()?;
                Ok(matches!(status.as_str(), "failed" | "postcopy-paused"))
            })?;
            place.wire.behave(Wire::Cut);
            return Ok(None);
        }
        Fault::Damaged => {
            place.wire.behave(Wire::Damaged);
            return Ok(None);
        }
        Fault::Cancel => return released(place, "migrate_cancel", Value::Null),
        Fault::QuitThere => {
            // A process that ends may not answer.
            let answer = place.destination.ask("quit", Value::Null);
            until("the destination ends", || Ok(place.destination.exit_code().is_some()))?;
            place.wire.behave(Wire::Flows);
            let told = answer.join().map_err(|_| "the thread that executed a command panicked".to_owned())?;
            return Ok(Some(told.or_else(|why| if why.contains("lost") { Ok(()) } else { Err(why) })));
        }
        Fault::LoadRefused => {}
        other => return Err(format!("{other:?} belongs to another table")),
    }
    place.wire.behave(Wire::Flows);
    Ok(None)
}
