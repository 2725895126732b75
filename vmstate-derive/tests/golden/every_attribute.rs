#[vmstate(name = "dev", version = 3, minimum_version = 2, crate = renamed)]
#[vmstate(pre_save = Self::freeze, post_save = Self::unfreeze, pre_load = Self::reset)]
#[vmstate(post_load = Self::thaw, validate = Self::check)]
#[vmstate(subsection(name = "dev/x", version = 2, minimum_version = 1, needed = Self::has_x, post_load = Self::thaw_x))]
struct Dev {
    #[vmstate(name = "env.a", since = 3, validate = Self::check_a)]
    a: u8,
    #[vmstate(exists = Self::old, must_exist = Self::fine, wire = u16)]
    b: u32,
    count: u8,
    #[vmstate(len = count, max = MAX)]
    list: Vec<u16>,
    #[vmstate(buffer, len = count, max = 16)]
    bytes: Vec<u8>,
    #[vmstate(buffer)]
    fixed: [u8; 6],
    #[vmstate(with = timer)]
    expiry: Option<u64>,
    #[vmstate(subsection = "dev/x", since = 2)]
    x: u32,
}
