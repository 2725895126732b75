#[vmstate(version = 2)]
struct Mistaken<T> {
    #[vmstate(sinc = 1)]
    a: T,
}
