use vmstate::VmState;

#[derive(VmState)]
enum Mode {
    Off = 0,
    On = 1,
}

fn main() {}
