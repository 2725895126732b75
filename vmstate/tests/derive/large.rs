//! No size of device overflows the stack: each form of a large value loads, and is put back, on a small stack.

use std::sync::{Mutex, RwLock};

use vmstate::codec::{Reader, Writer};
use vmstate::{ErrorKind, VmState, Wire};

/// Size of the small stack in bytes: twice a thread's default stack in musl.
const STACK: usize = 256 << 10;
/// Size of one large array in bytes.
const LARGE: usize = 2 << 20;

/// A device with many bytes, and a last byte that its check refuses if it is one.
trait Device: VmState + Send {
    /// Creates the device with all bytes zero, on a stack that is large enough.
    fn new() -> Box<Self>;
    /// Number of bytes that are not zero.
    fn ones(&self) -> usize;
}

/// Loads ones that the last byte refuses, then ones that are accepted, both on a small stack.
#[track_caller]
fn loads_and_is_put_back<D: Device + 'static>(bytes: usize) {
    let large = std::thread::Builder::new().stack_size(256 << 20);
    let mut device = large.spawn(D::new).unwrap().join().unwrap();
    let mut stream = vec![1; bytes + 1];
    std::thread::scope(|scope| {
        let small = std::thread::Builder::new().stack_size(STACK);
        let load = || {
            let error = device.load_or_keep(&mut Reader::strict(&stream), 1).unwrap_err();
            assert_eq!((error.kind(), error.message()), (ErrorKind::Rejected, "validate: refused"));
            assert_eq!(device.ones(), 0);
            stream[bytes] = 0;
            device.load_or_keep(&mut Reader::strict(&stream), 1).unwrap();
            assert_eq!(device.ones(), bytes);
            let mut out = Writer::new();
            Wire::save(&mut *device, &mut out).unwrap();
            assert!(out.as_slice() == stream);
        };
        small.spawn_scoped(scope, load).unwrap().join().unwrap();
    });
}

fn zeros<const N: usize>() -> Box<[u8; N]> {
    vec![0; N].try_into().unwrap()
}

fn count<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> usize {
    bytes.into_iter().filter(|byte| **byte != 0).count()
}

macro_rules! device {
    ($name:ident: $bytes:expr; { $($(#[$meta:meta])* $field:ident: $type:ty = $new:expr),* $(,)? }
     |$device:ident| $ones:expr) => {
        #[test]
        #[allow(non_camel_case_types)]
        fn $name() {
            #[derive(VmState)]
            #[vmstate(name = "large", validate = Self::check)]
            struct $name {
                $($(#[$meta])* $field: $type,)*
                verdict: u8,
            }

            impl $name {
                fn check(&self) -> Result<(), &'static str> {
                    if self.verdict == 1 { Err("refused") } else { Ok(()) }
                }
            }

            impl Device for $name {
                fn new() -> Box<Self> {
                    Box::new(Self { $($field: $new,)* verdict: 0 })
                }

                fn ones(&self) -> usize {
                    let $device = self;
                    $ones
                }
            }

            loads_and_is_put_back::<$name>($bytes);
        }
    };
}

device!(a_boxed_array: LARGE; { data: Box<[u8; LARGE]> = zeros() } |device| count(device.data.iter()));
device!(an_array_in_the_struct: LARGE; { data: [u8; LARGE] = [0; LARGE] } |device| count(&device.data));
device!(a_buffer: LARGE; { #[vmstate(buffer)] data: [u8; LARGE] = [0; LARGE] } |device| count(&device.data));

type Alias = [u8; LARGE];
device!(an_array_by_another_name: 2 * LARGE; {
    data: Alias = [0; LARGE],
    #[vmstate(buffer)]
    raw: Alias = [0; LARGE],
} |device| count(&device.data) + count(&device.raw));

device!(arrays_of_arrays: LARGE; { data: [[[u8; 256]; 256]; LARGE >> 16] = [[[0; 256]; 256]; LARGE >> 16] }
    |device| count(device.data.as_flattened().as_flattened()));
device!(a_bitmap: LARGE; { #[vmstate(bitmap)] words: [u64; LARGE / 8] = [0; LARGE / 8] }
    |device| device.words.iter().map(|word| word.count_ones() as usize).sum());
device!(a_part: LARGE; { #[vmstate(slice = 1..=LARGE)] data: [u8; LARGE + 2] = [0; LARGE + 2] } |device| count(&device.data));
device!(as_many_as_a_length_says: LARGE + 1; {
    length: u8 = 0,
    #[vmstate(len = length * LARGE, max = LARGE)]
    data: [u8; LARGE + 1] = [0; LARGE + 1],
} |device| count(&device.data) + usize::from(device.length));

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Foreign(u8);

impl From<&Foreign> for u8 {
    fn from(foreign: &Foreign) -> Self {
        foreign.0
    }
}

impl TryFrom<u8> for Foreign {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        Ok(Self(value))
    }
}

device!(elements_of_another_type: LARGE; { #[vmstate(via = [u8; LARGE])] data: [Foreign; LARGE] = [Foreign(0); LARGE] }
    |device| device.data.iter().filter(|foreign| foreign.0 != 0).count());

type Foreigns = [Foreign; LARGE];
device!(elements_of_another_type_by_another_name: LARGE; { #[vmstate(via = [u8; LARGE])] data: Foreigns = [Foreign(0); LARGE] }
    |device| device.data.iter().filter(|foreign| foreign.0 != 0).count());

#[derive(VmState, Clone, Copy)]
#[vmstate(name = "page")]
struct Page {
    dirty: bool,
    data: [u8; 4095],
}

impl Default for Page {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Page {
    const ZERO: Self = Self { dirty: false, data: [0; 4095] };

    fn ones(&self) -> usize {
        usize::from(self.dirty) + count(&self.data)
    }
}

device!(an_array_of_structs: LARGE; { pages: [Page; LARGE / 4096] = [Page::ZERO; LARGE / 4096] }
    |device| device.pages.iter().map(Page::ones).sum());

/// Structs of a page each, too many for any stack, and none of them in an array.
#[derive(VmState, Clone, Copy)]
#[vmstate(name = "eight")]
struct Eight(Page, Page, Page, Page, Page, Page, Page, Page);

#[derive(VmState, Clone, Copy)]
#[vmstate(name = "more")]
struct More(Eight, Eight, Eight, Eight, Eight, Eight, Eight, Eight);

impl Eight {
    const ZERO: Self =
        Self(Page::ZERO, Page::ZERO, Page::ZERO, Page::ZERO, Page::ZERO, Page::ZERO, Page::ZERO, Page::ZERO);

    fn ones(&self) -> usize {
        [&self.0, &self.1, &self.2, &self.3, &self.4, &self.5, &self.6, &self.7].into_iter().map(Page::ones).sum()
    }
}

impl More {
    const ZERO: Self = {
        let eight = Eight::ZERO;
        Self(eight, eight, eight, eight, eight, eight, eight, eight)
    };

    fn ones(&self) -> usize {
        [&self.0, &self.1, &self.2, &self.3, &self.4, &self.5, &self.6, &self.7].into_iter().map(Eight::ones).sum()
    }
}

device!(structs_in_structs: 3 * 64 * 4096; { a: More = More::ZERO, b: Box<More> = Box::new(More::ZERO), c: More = More::ZERO }
    |device| device.a.ones() + device.b.ones() + device.c.ones());

#[derive(VmState, Clone, Copy)]
#[vmstate(transparent)]
struct Wrapped([u8; LARGE]);

#[derive(VmState, Clone, Copy)]
#[vmstate(name = "generic")]
struct Generic<T: Copy, const N: usize> {
    data: [T; N],
    #[vmstate(buffer)]
    raw: [u8; N],
}

device!(wrappers: 7 * LARGE; {
    wrapped: Wrapped = Wrapped([0; LARGE]),
    tuple: ([u8; LARGE], [u16; LARGE / 2]) = ([0; LARGE], [0; LARGE / 2]),
    mutex: Mutex<[u8; LARGE]> = Mutex::new([0; LARGE]),
    lock: RwLock<Box<[u8; LARGE]>> = RwLock::new(zeros()),
    generic: Generic<u8, LARGE> = Generic { data: [0; LARGE], raw: [0; LARGE] },
} |device| {
    let halves = device.tuple.1.iter().map(|half| half.count_ones() as usize).sum::<usize>();
    let locked = count(&*device.mutex.lock().unwrap()) + count(device.lock.read().unwrap().iter());
    let generic = count(&device.generic.data) + count(&device.generic.raw);
    count(&device.wrapped.0) + count(&device.tuple.0) + halves + locked + generic
});

device!(pointers_to_large_structs: 8 * 4096; { pages: [Option<Box<Page>>; 8] = std::array::from_fn(|_| Some(Box::new(Page::ZERO))) }
    |device| device.pages.iter().flatten().map(|page| page.ones()).sum());

#[derive(VmState, Clone, Copy, PartialEq)]
#[repr(u8)]
enum Mode {
    Off = 0,
    On = 1,
}

device!(an_array_of_enums: LARGE; { modes: [Mode; LARGE] = [Mode::Off; LARGE] }
    |device| device.modes.iter().filter(|mode| **mode == Mode::On).count());
device!(an_array_of_bools: LARGE; { flags: [bool; LARGE] = [false; LARGE] }
    |device| device.flags.iter().filter(|flag| **flag).count());

// Only the sum is large: many fields, each of which alone would be kept in place.
device!(many_small_arrays: 12 * 8000; {
    a: [u8; 8000] = [0; 8000], b: [u8; 8000] = [0; 8000], c: [u8; 8000] = [0; 8000], d: [u8; 8000] = [0; 8000],
    e: [u8; 8000] = [0; 8000], f: [u8; 8000] = [0; 8000], g: [u8; 8000] = [0; 8000], h: [u8; 8000] = [0; 8000],
    i: [u8; 8000] = [0; 8000], j: [u8; 8000] = [0; 8000], k: [u8; 8000] = [0; 8000], l: [u8; 8000] = [0; 8000],
} |device| {
    let d = device;
    [&d.a, &d.b, &d.c, &d.d, &d.e, &d.f, &d.g, &d.h, &d.i, &d.j, &d.k, &d.l].into_iter().map(count).sum()
});
