//! `via` and `with` on a map: each is about keys, values or both.

use std::collections::BTreeMap;

use vmstate::VmState;

mod codec {
    use vmstate::codec::{Reader, Writer};
    use vmstate::schema::Kind;

    pub const KIND: Kind = Kind::Buffer(1);

    pub fn save(_: &u8, _: &mut Writer) -> vmstate::Result<()> {
        Ok(())
    }

    pub fn load(_: &mut Reader<'_>) -> vmstate::Result<u8> {
        Ok(0)
    }
}

#[derive(VmState)]
#[vmstate(name = "dev")]
struct Dev {
    #[vmstate(map, max = 4, via = u8)]
    one_type: BTreeMap<u8, u8>,
    #[vmstate(map, max = 4, via = (u8, u8, u8))]
    three_types: BTreeMap<u8, u8>,
    #[vmstate(map, max = 4, with = codec)]
    one_module: BTreeMap<u8, u8>,
    #[vmstate(map, max = 4, with = [codec; 2])]
    array: BTreeMap<u8, u8>,
    #[vmstate(map, max = 4, via = (_, _))]
    neither: BTreeMap<u8, u8>,
    #[vmstate(map, max = 4, via = (u8, _), with = (codec, codec))]
    twice: BTreeMap<u8, u8>,
    #[vmstate(list, max = 4, with = (codec, codec))]
    list: Vec<u8>,
    #[vmstate(with = (codec, _))]
    alone: u8,
    #[vmstate(with = (codec, codec, codec))]
    three_modules: u8,
}

#[derive(VmState)]
#[vmstate(name = "wrong")]
struct WrongType {
    #[vmstate(map, max = 4, with = (_, codec))]
    list: Vec<u8>,
}

fn main() {}
