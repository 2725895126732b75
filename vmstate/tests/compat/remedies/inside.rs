//! Fields of nested structs and of variants of enums, which have no version in the stream.

use vmstate::VmState;

use super::Direction::{NewToOld, OldToNew};
use super::{Followed, NOT_SENT, never};

pub(crate) fn nested_fields(followed: &mut Followed) {
    dev!(Regs as "regs" { a: u8 });
    dev!(MoreRegs as "regs" { a: u8, b: u8 });
    dev!(RegsBySubsection as "regs": vmstate(subsection(name = "regs/b", needed = never)) {
        a: u8,
        #[vmstate(subsection = "regs/b")]
        b: u8,
    });
    dev!(Old { regs: Regs });
    dev!(Careless { regs: MoreRegs });
    dev!(Inside { regs: RegsBySubsection });
    dev!(Beside: vmstate(version = 2, minimum_version = 1) { regs: Regs, #[vmstate(since = 2)] b: u8 });
    dev!(BesideBySubsection: vmstate(subsection(name = "dev/b", needed = never)) {
        regs: Regs,
        #[vmstate(subsection = "dev/b")]
        b: u8,
    });
    let remedy = "put the new field into a subsection of the nested struct, which has no version in the stream; or beside \
                  the nested struct, there into a subsection or with since = a new version";
    followed.follow::<Old, Careless, Inside>(OldToNew, remedy, &[], Old::default(), Inside::default());
    followed.follow::<Old, Careless, Beside>(OldToNew, remedy, &[], Old::default(), Beside::default());
    followed.follow::<Old, Careless, BesideBySubsection>(
        OldToNew,
        remedy,
        &[],
        Old::default(),
        BesideBySubsection::default(),
    );
    // A remedy that would not help: a version of the nested struct.
    dev!(RegsSince as "regs": vmstate(version = 2, minimum_version = 1) { a: u8, #[vmstate(since = 2)] b: u8 });
    dev!(Circle { regs: RegsSince });
    followed.follow::<Old, Circle, Inside>(OldToNew, remedy, &[], Old::default(), Inside::default());
    // A tuple is a nested struct.
    dev!(Pair { pair: (u8, u8) });
    dev!(Triple { pair: (u8, u8, u8) });
    dev!(PairAndOne: vmstate(version = 2, minimum_version = 1) { pair: (u8, u8), #[vmstate(since = 2)] third: u8 });
    followed.follow::<Pair, Triple, PairAndOne>(OldToNew, remedy, &[], Pair::default(), PairAndOne::default());

    let assumed = ["subsection \"regs.regs/b\" is not sent", NOT_SENT];
    let remedy = "put the new field into a subsection that is sent only when needed";
    followed.follow::<Old, Careless, Inside>(NewToOld, remedy, &assumed, Inside::default(), Old::default());
    followed.follow::<Old, Careless, BesideBySubsection>(
        NewToOld,
        remedy,
        &assumed,
        BesideBySubsection::default(),
        Old::default(),
    );
}

pub(crate) fn fields_of_variants(followed: &mut Followed) {
    #[derive(VmState, Default, Clone)]
    #[repr(u8)]
    enum Mode {
        #[default]
        Off = 0,
        Level(u8) = 1,
    }
    #[derive(VmState, Default, Clone)]
    #[repr(u8)]
    enum Longer {
        #[default]
        Off = 0,
        Level(u8, u8) = 1,
    }
    #[derive(VmState, Default, Clone)]
    #[repr(u8)]
    enum More {
        #[default]
        Off = 0,
        Level(u8) = 1,
        Range(u8, u8) = 2,
    }
    dev!(Old { mode: Mode });
    dev!(Careless { mode: Longer });
    dev!(NewVariant { mode: More });
    dev!(Beside: vmstate(version = 2, minimum_version = 1) { mode: Mode, #[vmstate(since = 2)] high: u8 });
    dev!(BesideBySubsection: vmstate(subsection(name = "dev/b", needed = never)) {
        mode: Mode,
        #[vmstate(subsection = "dev/b")]
        high: u8,
    });
    let remedy = "keep the fields of the variant: put what is new into a variant with a number of its own; or beside the \
                  enum, there into a subsection or with since = a new version";
    let old = || Old { mode: Mode::Level(7) };
    followed.follow::<Old, Careless, NewVariant>(OldToNew, remedy, &[], old(), NewVariant::default());
    followed.follow::<Old, Careless, Beside>(OldToNew, remedy, &[], old(), Beside::default());
    followed.follow::<Old, Careless, BesideBySubsection>(OldToNew, remedy, &[], old(), BesideBySubsection::default());

    let remedy = "send what the old release does not take in a subsection that is sent only when needed";
    let sent = BesideBySubsection { mode: Mode::Level(7), high: 9 };
    followed.follow::<Old, NewVariant, BesideBySubsection>(NewToOld, remedy, &[NOT_SENT], sent, Old::default());
    let remedy = "go on taking what was written, and map it after the load";
    let sent = NewVariant { mode: More::Range(1, 2) };
    followed.follow::<NewVariant, Old, NewVariant>(OldToNew, remedy, &[], sent, NewVariant::default());
    let _ = (Longer::Level(0, 0), More::Level(0));
}
