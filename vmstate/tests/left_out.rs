//! A guest that migrates with a copy of its disk: the two image files prove nothing about each other, and a lease decides, if
//! there is one.
#![cfg(feature = "engine")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use vmstate::ownership::{Access, Claim, Ownership, Resource, Role};

fn open(path: &Path) -> Arc<Resource> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    Arc::new(Resource::image(file, path, Access::Exclusive))
}

fn generation(path: &Path) -> Option<u64> {
    open(path).record().unwrap().map(|record| record.generation)
}

#[test]
fn a_disk_that_is_left_out_decides_nothing_and_keeps_its_lock() {
    for leased in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let [disk, copy, lease] = ["disk", "copy", "lease"].map(|name| folder.path().join(name));
        for image in [&disk, &copy] {
            std::fs::write(image, [7; 4096]).unwrap();
        }
        let set = |path: &Path| {
            let lease = leased.then(|| (Role::Lease, Arc::new(Resource::lease(&lease).unwrap())));
            Ownership::new([(Role::Disk(0), open(path))].into_iter().chain(lease)).unwrap()
        };
        let (source, destination) = (set(&disk), set(&copy));
        source.take().unwrap();
        source.advance().unwrap();
        for side in [&source, &destination] {
            side.leave_out(&[Role::Disk(0)]);
            assert_eq!(side.has_exclusive(), leased);
        }
        let tickets = source.begin().unwrap();
        assert_eq!(tickets.iter().map(|ticket| ticket.role).collect::<Vec<_>>(), [Role::Lease][..usize::from(leased)]);
        destination.prove(Some(&tickets)).unwrap();
        source.release().unwrap();
        assert!(open(&disk).held_by_another().unwrap(), "nobody else may have the source's disk");
        let claim = if leased { Claim::Won } else { Claim::Undecidable };
        assert_eq!((destination.claim().unwrap(), destination.is_provable()), (claim, leased));
        assert!(!open(&copy).held_by_another().unwrap());
        assert_eq!(source.claim().unwrap(), if leased { Claim::Held } else { Claim::Undecidable });
        // The guest runs there, with all of its resources.
        destination.advance().unwrap();
        assert_eq!((generation(&disk), generation(&copy)), (Some(1), Some(1)));
        assert!(destination.has_exclusive() && destination.is_provable());
        assert_eq!(destination.begin().unwrap().len(), 1 + usize::from(leased));
        drop(destination);
        assert_eq!(source.claim().unwrap(), if leased { Claim::Moved } else { Claim::Undecidable });
    }
}

/// A migration with copied disks fails, and the next one has none.
#[test]
fn a_disk_that_was_left_out_decides_again() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, [7; 4096]).unwrap();
    let [source, destination] = [(); 2].map(|()| Ownership::new([(Role::Disk(0), open(&disk))]).unwrap());
    source.take().unwrap();
    source.leave_out(&[Role::Disk(0)]);
    assert!(source.begin().unwrap().is_empty());
    source.leave_out(&[]);
    destination.prove(Some(&source.begin().unwrap())).unwrap();
    assert_eq!(destination.claim().unwrap(), Claim::Held);
}
