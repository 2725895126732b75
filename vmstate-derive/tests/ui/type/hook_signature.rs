use vmstate::VmState;

#[derive(VmState)]
#[vmstate(name = "dev", post_load = Self::thaw, validate = Self::check)]
struct Dev {
    #[vmstate(exists = Self::exists)]
    a: u8,
}

impl Dev {
    fn thaw(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn check(&self) -> bool {
        true
    }

    fn exists(&self) -> bool {
        true
    }
}

fn main() {}
