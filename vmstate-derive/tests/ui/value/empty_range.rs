use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(range = 5..3)]
    backwards: u8,
    #[vmstate(range = 5..5)]
    none: u16,
    #[vmstate(range = 4..=3)]
    inclusive: i32,
    #[vmstate(range = 5..=5)]
    one: u8,
}

fn main() {}
