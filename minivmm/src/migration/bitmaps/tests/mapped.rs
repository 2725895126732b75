//! Mappings of names: what a source sends, and under which names a destination takes it.

use super::*;

/// Name and alias of a bitmap, and whether it is to be persistent.
type Alias<'a> = (&'a str, &'a str, Option<bool>);

/// A mapping of disks: the name of each, its alias, its bitmaps.
pub(super) fn mapping(nodes: &[(&str, &str, &[Alias<'_>])]) -> SharedMapping {
    let bitmap =
        |&(name, alias, persistent): &Alias<'_>| BitmapAlias { name: name.into(), alias: alias.into(), persistent };
    let nodes = nodes.iter().map(|(node, alias, bitmaps)| NodeAlias {
        node: (*node).into(),
        alias: (*alias).into(),
        bitmaps: bitmaps.iter().map(bitmap).collect(),
    });
    Arc::new(Mutex::new(Some(BitmapMapping::new(nodes.collect()).unwrap())))
}

/// Disks and names are exchanged by the two mappings together, and bitmaps without an alias stay.
#[test]
fn a_mapping_names_what_is_sent_and_what_arrives() {
    let (disks, source) = machine(&[1 << 20, 1 << 20, 1 << 20]);
    let long = "x".repeat(1023);
    for (disk, name) in [(0, &*long), (0, "stays"), (1, "one"), (1, "two"), (2, "stays")] {
        disks[disk].add(name, 4096, true).unwrap();
    }
    disks[0].mark(5000, 1);
    disks[1].mark(9000, 1);
    let out = mapping(&[
        ("virtio1", "second", &[("two", "b", None), ("one", "a", None), ("no-such", "c", None)]),
        ("virtio0", "first", &[(&long, "a", Some(false))]),
        ("virtio7", "no-such", &[]),
    ]);
    let mut source = source.mapped(Arc::clone(&out));
    let (there, destination) = machine(&[1 << 20, 1 << 20]);
    let into = mapping(&[
        ("virtio1", "first", &[("from the first", "a", None)]),
        ("virtio0", "second", &[("one", "b", None), ("two", "a", None)]),
    ]);
    let mut destination = destination.mapped(Arc::clone(&into));
    assert!(source.is_needed());
    let start = put(|out| source.setup(out).unwrap());
    // What users set now is for the next migration.
    *lock(&out) = None;
    let names: Vec<_> = records(&start).into_iter().map(|(node, name, _)| format!("{node}/{name}")).collect();
    assert_eq!(names, ["first/a", "second/b", "second/a"]);
    assert_eq!(disks[0].clear("stays"), Ok(()), "is not busy");
    assert!(matches!(disks[0].clear(&long), Err(BitmapError::Busy(_))));
    load(&mut destination, Body::Start, &start).unwrap();
    *lock(&into) = None;
    source.sync().unwrap();
    load(&mut destination, Body::Part, &put(|out| assert!(source.iterate(out, u64::MAX).unwrap()))).unwrap();
    load(&mut destination, Body::End, &put(|out| source.complete(out).unwrap())).unwrap();
    there.iter().for_each(|disk| disk.arrived());
    [&mut source, &mut destination].into_iter().for_each(IterativeSection::cleanup);
    let bitmap = |name: &str, cluster| -> Seen { (name.into(), 4096, true, false, vec![cluster]) };
    assert_eq!(seen(&there[0]), [bitmap("two", 2), bitmap("one", 2)]);
    assert_eq!(seen(&there[1]), [bitmap("from the first", 1)]);
    assert!(disks.iter().all(|disk| seen(disk).iter().all(|bitmap| !bitmap.3)));
    // The mapping is read again.
    let error = source.setup(&mut Outbox::new()).unwrap_err();
    assert!(error.to_string().contains("more than 255 bytes"), "{error}");
}

#[test]
fn without_a_mapped_bitmap_nothing_is_sent() {
    let (disks, section) = machine(&DISKS);
    disks[0].add("b", 512, true).unwrap();
    for other in [mapping(&[]), mapping(&[("virtio0", "a", &[])]), mapping(&[("virtio1", "a", &[("b", "b", None)])])] {
        assert!(!BitmapSection::new(disks.clone(), true).mapped(other).is_needed());
    }
    assert!(section.mapped(mapping(&[("virtio0", "a", &[("b", "b", None)])])).is_needed());
}

/// A bitmap that is to be kept in the image is refused, whichever side says that; the destination's mapping counts.
#[test]
fn a_transform_decides_whether_a_bitmap_is_persistent() {
    for (of_source, of_destination, arrives) in [
        (None, None, true),
        (Some(false), None, true),
        (Some(true), None, false),
        (Some(true), Some(false), true),
        (None, Some(true), false),
    ] {
        let (disks, source) = machine(&DISKS);
        disks[0].add("b", 512, true).unwrap();
        let mut source = source.mapped(mapping(&[("virtio0", "d", &[("b", "b", of_source)])]));
        let start = put(|out| source.setup(out).unwrap());
        let [(.., Content::Start { persistent, .. })] = &records(&start)[..] else { panic!("one bitmap") };
        assert_eq!(*persistent, of_source == Some(true));
        let (there, destination) = machine(&DISKS);
        let mut destination = destination.mapped(mapping(&[("virtio0", "d", &[("b", "b", of_destination)])]));
        match load(&mut destination, Body::Start, &start) {
            Ok(_) => assert!(arrives, "{of_source:?} {of_destination:?}"),
            Err(error) => assert!(!arrives && error.to_string().contains("set transform.persistent"), "{error}"),
        }
        assert_eq!(seen(&there[0]).len(), usize::from(arrives));
    }
}

#[test]
fn a_destination_refuses_names_that_its_mapping_lacks() {
    let start = |node: &str, name: &str| [record(0x1c, &[node, name], &[&[0, 0, 2, 0, 1]]), vec![1]].concat();
    for (node, name, why) in [
        ("virtio0", "b", "maps no disk here to this name"),
        ("lost", "b", "maps no disk here to this name"),
        ("d", "x", "maps no bitmap here"),
    ] {
        let (disks, section) = machine(&DISKS);
        let mut section = section.mapped(mapping(&[("virtio0", "d", &[("b", "b", None)]), ("virtio9", "lost", &[])]));
        let error = load(&mut section, Body::Start, &start(node, name)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(seen(&disks[0]).is_empty());
        section.cleanup();
        load(&mut section, Body::Start, &start("d", "b")).unwrap();
    }
}
