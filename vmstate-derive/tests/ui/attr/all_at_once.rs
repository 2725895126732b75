use vmstate::VmState;

#[derive(VmState)]
#[vmstate(version = 2, version = 3, minimum_version = 4)]
struct Dev {
    #[vmstate(sinc = 1)]
    a: u8,
    #[vmstate(since = 5)]
    b: u8,
    #[vmstate(len = n)]
    c: Vec<u8>,
}

fn uses(dev: &mut Dev, out: &mut vmstate::codec::Writer) {
    // The impl is there even so: no error here.
    let _ = vmstate::Wire::save(dev, out);
}

fn main() {}
