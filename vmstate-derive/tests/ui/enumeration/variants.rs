use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "mode", version = 2)]
#[repr(u8)]
enum Mode {
    Off,
    On = 1,
    Level(u8) = 2,
    Both { left: u8 } = 3,
    #[vmstate(since = 2)]
    New = 4,
}

#[derive(VmState)]
#[repr(usize)]
enum Wide {
    A = 1,
}

fn main() {}
