//! A table of few entries, in less memory than a page.

/// Words of one line.
const WORDS: usize = 8;
/// Lines of a page.
const LINES: usize = 512 / WORDS;
/// Lines by which the memory of a table grows.
const GROWTH: usize = 4;

type Line = [u64; WORDS];

/// The 512 words of a page: lines of eight are kept where one of them was ever other than zero.
#[derive(Clone, Debug)]
pub struct SparsePage {
    /// By line, its place among those kept, from one on; 0 if it is all zero.
    places: [u8; LINES],
    kept: Vec<Line>,
}

impl Default for SparsePage {
    fn default() -> Self {
        Self { places: [0; LINES], kept: Vec::new() }
    }
}

impl SparsePage {
    /// A word of the page.
    #[inline]
    pub fn word(&self, index: usize) -> &u64 {
        let place = usize::from(self.places[index / WORDS % LINES]);
        let line = place.checked_sub(1).and_then(|i| self.kept.get(i));
        line.map_or(&0, |line| &line[index % WORDS])
    }

    /// Stores a word. Returns what stood there.
    pub fn store(&mut self, index: usize, value: u64) -> u64 {
        let old = *self.word(index);
        if old != value {
            let word = self.word_mut(index);
            *word = value;
        }
        old
    }

    fn word_mut(&mut self, index: usize) -> &mut u64 {
        let place = &mut self.places[index / WORDS % LINES];
        if *place == 0 {
            if self.kept.len() == self.kept.capacity() {
                self.kept.reserve_exact(GROWTH);
            }
            self.kept.push([0; WORDS]);
            *place = self.kept.len() as u8;
        }
        &mut self.kept[usize::from(*place) - 1][index % WORDS]
    }

    /// All words.
    pub fn words(&self) -> [u64; 512] {
        std::array::from_fn(|i| *self.word(i))
    }
}

impl From<&[u64; 512]> for SparsePage {
    fn from(words: &[u64; 512]) -> Self {
        let mut page = Self::default();
        for (i, word) in words.iter().enumerate() {
            page.store(i, *word);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_was_stored_last() {
        let mut page = SparsePage::default();
        let mut plain = [0; 512];
        // 197 is prime to 512: every word once, then some of them again.
        for i in 0..700_usize {
            let (at, value) = (i * 197 % 512, if i % 5 == 0 { 0 } else { i as u64 });
            assert_eq!(page.store(at, value), std::mem::replace(&mut plain[at], value), "{i}");
            assert_eq!(*page.word(at), value, "{i}");
        }
        assert_eq!(page.words(), plain);
        assert_eq!(SparsePage::from(&plain).words(), plain);
    }

    #[test]
    fn few_entries_take_little_memory() {
        let mut page = SparsePage::default();
        for i in 0..8 {
            page.store(i * 60, 7);
            page.store(i * 60 + 1, 0);
            page.store(509, 0);
        }
        assert_eq!(page.kept.capacity(), 8);
    }
}
