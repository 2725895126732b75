//! Content that identifies its place and its generation, for memory pages, files and packets alike.

/// Bytes in a page.
pub const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// One page of guest memory; the alignment makes it exactly one page.
#[derive(Clone, Debug)]
#[repr(align(4096))]
pub struct Page(pub [u64; WORDS]);

impl Page {
    /// A page of zeroes.
    pub const ZERO: Self = Self([0; WORDS]);

    /// Writes the pattern of page `number` in its `generation`.
    pub fn fill(&mut self, number: u64, generation: u64) {
        self.0.iter_mut().zip(words(number, generation)).for_each(|(word, value)| *word = value);
    }

    /// Whether every word is as [`Page::fill`] left it.
    pub fn holds(&self, number: u64, generation: u64) -> bool {
        self.0.iter().copied().eq(words(number, generation).take(WORDS))
    }
}

/// `size` bytes of the pattern.
pub fn bytes(number: u64, generation: u64, size: usize) -> Vec<u8> {
    words(number, generation).flat_map(u64::to_le_bytes).take(size).collect()
}

/// Number and generation in plain form, then words that depend on both: a torn or stale page is detected, and names the
/// page it belongs to.
fn words(number: u64, generation: u64) -> impl Iterator<Item = u64> {
    let seed = (number << 32 ^ generation).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995;
    let body = (1..).map(move |index: u64| seed.wrapping_add(index.wrapping_mul(0xd6e8_feb8_6659_fd93)));
    [number, generation].into_iter().chain(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_number_generation_or_any_changed_bit_is_detected() {
        let mut page = Page::ZERO;
        page.fill(7, 3);
        assert!(page.holds(7, 3) && !page.holds(7, 2) && !page.holds(6, 3));
        for word in [0, 1, 2, 511] {
            let mut wrong = page.clone();
            wrong.0[word] ^= 1 << 63;
            assert!(!wrong.holds(7, 3));
        }
        // The second half is of another generation.
        let mut torn = page.clone();
        let mut newer = Page::ZERO;
        newer.fill(7, 4);
        torn.0[256..].copy_from_slice(&newer.0[256..]);
        assert!(!torn.holds(7, 3) && !torn.holds(7, 4));
    }

    #[test]
    fn bytes_are_the_same_pattern() {
        let mut page = Page::ZERO;
        page.fill(1, 2);
        assert_eq!(bytes(1, 2, 16), [1u64.to_le_bytes(), 2u64.to_le_bytes()].concat());
        let all: Vec<u8> = page.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes(1, 2, PAGE), all);
    }
}
