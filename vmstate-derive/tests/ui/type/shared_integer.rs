use std::sync::Arc;

#[derive(vmstate::VmState)]
#[vmstate(name = "dev")]
struct Dev {
    level: Arc<u32>,
}

fn main() {}
