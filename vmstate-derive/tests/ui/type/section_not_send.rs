use std::cell::Cell;
use std::rc::Rc;

#[derive(vmstate::VmState)]
#[vmstate(name = "dev")]
struct Dev {
    level: Rc<Cell<u32>>,
}

fn main() {
    let dev = Dev { level: Rc::default() };
    vmstate::section::Sections::new().add(dev).unwrap();
}
