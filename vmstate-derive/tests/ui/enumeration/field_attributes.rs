//! Attributes that a variant's field cannot have: an enum has no versions and no subsections.

use vmstate::VmState;

#[derive(VmState)]
#[repr(u8)]
enum Mode {
    Since(#[vmstate(since = 2)] u8) = 0,
    Exists(#[vmstate(exists = Self::has_it)] u8) = 1,
    MustExist(#[vmstate(must_exist = Self::has_it)] u8) = 2,
    Subsection(#[vmstate(subsection = "mode/late")] u8) = 3,
    Equal(#[vmstate(equal)] u8) = 4,
    AtMost(#[vmstate(at_most_current)] u8) = 5,
    Temporary(#[vmstate(tmp = u8)] ()) = 6,
    NoMax(#[vmstate(list)] Vec<u8>) = 7,
    NoLength {
        #[vmstate(len = count, max = 2)]
        data: Vec<u8>,
    } = 8,
    TwoCodecs(#[vmstate(wire = u8, with = module)] u32) = 9,
    Skipped(#[vmstate(skip, range = 1..2)] u8) = 10,
    Itself(Box<Mode>) = 11,
    Unknown(#[vmstate(rnage = 1..2)] u8) = 12,
}

#[derive(VmState, Default)]
#[vmstate(name = "framed", subsection(name = "framed/late"))]
struct Framed {
    level: u8,
    #[vmstate(subsection = "framed/late")]
    late: Option<u8>,
}

#[derive(VmState)]
#[repr(u8)]
enum Layout {
    Followed(Framed, u8) = 1,
    Given(#[vmstate(unframed)] Framed, u8) = 2,
    Last(u8, Framed) = 3,
    Empty(#[vmstate(range = 3..3)] u8) = 4,
}

#[derive(Default)]
struct NoClone;

#[derive(VmState)]
#[repr(u8)]
enum Kept {
    Skipped(#[vmstate(skip)] NoClone) = 1,
}

fn main() {}
