//! A temporary is made from the whole struct, so its own field must not hold anything.

use std::error::Error;

use vmstate::{Temporary, VmState};

#[derive(VmState)]
#[vmstate(name = "tmp")]
struct Tmp {
    half: u8,
}

impl From<&Dev> for Tmp {
    fn from(dev: &Dev) -> Self {
        Self { half: dev.b / 2 }
    }
}

impl Temporary<Dev> for Tmp {
    fn apply(self, dev: &mut Dev) -> Result<(), Box<dyn Error + Send + Sync>> {
        dev.b = self.half * 2;
        Ok(())
    }
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(tmp = Tmp)]
    b: u8,
}

fn main() {}
