//! One case of the matrix of post-copy, with two real processes: the phase, the fault, and the conditions after it.

use std::time::Instant;

use serde_json::Value;

use super::case::{check_outcome, options, quit, released};
use super::cell::{Cell, Fault};
use super::marks::Mark;
use super::outcome::CommandResult;
use super::postcopy::Moment;
use super::relay::Behaviour;
use super::setup::Setup;
use super::side::Side;
use super::testbed::{Testbed, TestbedOptions};
use super::{Result, TIMEOUT, until};

/// Causes the fault for a guest that runs at `source` and checks the outcome.
///
/// # Errors
/// The condition that failed, and the state of both sides.
pub fn run(setup: &Setup, source: Side, fault: Fault, moment: Moment, cell: &Cell) -> Result<()> {
    let Cell::Ends { .. } = cell else { return Ok(()) };
    let options = TestbedOptions { hold: Some(moment.mark()), ..options(fault, moment.mark()) };
    let mut testbed = Testbed::new(setup, source, &options)?;
    let result = reach(moment, &mut testbed).and_then(|()| inject(fault, &mut testbed));
    check_outcome(&mut testbed, fault, cell, result)
}

/// Migrates until the phase is reached.
fn reach(moment: Moment, testbed: &mut Testbed) -> Result<()> {
    testbed.migrate()?;
    testbed.relay.await_mark(moment.mark(), Instant::now() + TIMEOUT)?;
    if moment >= Moment::Runs {
        // The destination reports that it runs the guest just before it does.
        until("the destination runs the guest", || Ok(testbed.destination.state()?.0 == "running"))?;
    }
    if let Moment::Paused | Moment::Recovery = moment {
        testbed.relay.set_behaviour(Behaviour::Cut);
        until("both sides notice that the connection broke", || {
            Ok([&mut testbed.source, &mut testbed.destination]
                .into_iter()
                .all(|side| side.state().is_ok_and(|(_, status, _)| status == "postcopy-paused")))
        })?;
    }
    if moment == Moment::Recovery {
        testbed.resume(Some(Mark::Resume))?;
        testbed.relay.await_mark(Mark::Resume, Instant::now() + TIMEOUT)?;
    }
    Ok(())
}

fn inject(fault: Fault, testbed: &mut Testbed) -> Result<CommandResult> {
    match fault {
        Fault::SourceKilled => testbed.source.kill(),
        Fault::DestinationKilled => testbed.destination.kill(),
        Fault::WireCut => {
            testbed.relay.set_behaviour(Behaviour::Cut);
            return Ok(None);
        }
        Fault::WireStalls => {
            testbed.relay.set_behaviour(Behaviour::Stalls);
            until("the source gives the connection up", || {
                let (_, status, _) = testbed.source.state()?;
                Ok(matches!(status.as_str(), "failed" | "postcopy-paused"))
            })?;
            testbed.relay.set_behaviour(Behaviour::Cut);
            return Ok(None);
        }
        Fault::Damaged => {
            testbed.relay.set_behaviour(Behaviour::Damaged);
            return Ok(None);
        }
        Fault::Cancel => return released(testbed, "migrate_cancel", Value::Null),
        Fault::QuitThere => return quit(testbed, |testbed| &mut testbed.destination),
        Fault::LoadRefused => {}
        other => return Err(format!("{other:?} belongs to another table")),
    }
    testbed.relay.set_behaviour(Behaviour::Flows);
    Ok(None)
}
