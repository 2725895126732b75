//! Whole migrations on a virtual wire: the oracle is the source guest's own memory, which every write went into.

mod pair;

use pair::run::Setup;
use vmstate::migrate::SourcePhase;

const BLOCKS: [(&str, u64); 3] = [("main.ram", 40), ("rom", 2), ("table", 1)];

#[test]
fn an_idle_guest_arrives_whole() {
    let setup = Setup::new(&BLOCKS, None);
    for page in [0, 3, 17, 39] {
        setup.source.guest.poke(0, page * 4096 + page, 0xa0 + page as u8);
    }
    setup.source.guest.poke(2, 4095, 1);
    let outcome = setup.run();
    assert_eq!(outcome.departure.phase, SourcePhase::Completed, "{:?}", outcome.departure.error);
    let arrival = outcome.arrival.unwrap();
    assert_eq!(outcome.destination.guest.memory(), outcome.source.guest.memory());
    assert_eq!(outcome.destination_devices, outcome.source_devices);
    assert!(outcome.destination.running && !outcome.source.running && !outcome.source.guest.is_logging());
    assert_eq!((arrival.pages.normal, arrival.pages.zero), (5, 38));
}
