#[vmstate(name = "ring")]
struct Ring<'a, T: Copy, const N: usize = 4>(
    [T; N],
    #[vmstate(with = codec)] Option<T>,
    #[vmstate(skip)] &'a str,
)
where
    T: Default;
