//! A value that has one of its own type inside of it has no layout.

use std::marker::PhantomData;

use vmstate::VmState;

#[derive(VmState, Default)]
#[vmstate(name = "node")]
struct Node {
    next: Option<Box<Node>>,
    #[vmstate(list, max = 4)]
    children: Vec<Self>,
    size: [u8; Node::SIZE],
    #[vmstate(skip)]
    fine: Option<Box<Self>>,
    #[vmstate(skip)]
    also_fine: PhantomData<Self>,
}

impl Node {
    const SIZE: usize = 2;
}

fn main() {}
