#[vmstate(name = "plain")]
struct Plain {
    a: u8,
    b: [u32; 4],
    #[vmstate(skip)]
    c: String,
}
